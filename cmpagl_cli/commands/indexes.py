"""`cmpagl indexes`: list, check, prune, merge and export indexes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmpagl_cli.commands.options import FormatOption, settings
from cmpagl_cli.views import Column, emit

NameArgument = Annotated[str | None, typer.Argument(metavar="[NAME|DIR]", help="Index. Default: the newest.")]


def indexes_list(ctx: typer.Context, format: FormatOption = "table") -> None:
    """List the workspace's indexes, newest first.

    Examples:
      cmpagl indexes list
      cmpagl indexes list --format json
    """
    from cmpagl_core.search.manage import list_indexes

    given = settings(ctx)
    rows = [one.document() for one in list_indexes(given.workspace, given.progress)]
    columns = [
        Column("name"),
        Column("images"),
        Column("captions"),
        Column("model"),
        Column("store"),
        Column("kind", "of a"),
        Column("source"),
        Column("made_at", "made at"),
    ]
    emit(rows, columns, format, document=rows if format == "json" else None)
    if not rows:
        given.progress.say(f"no index in {given.workspace.root / 'indexes'}; build one with `cmpagl index DIR`")


def indexes_info(ctx: typer.Context, name: NameArgument = None, format: FormatOption = "table") -> None:
    """Show everything recorded in an index: its images, its model and its store.

    Examples:
      cmpagl indexes info
      cmpagl indexes info archive --format json
    """
    from cmpagl_core.search.index import open_index
    from cmpagl_core.search.manage import IndexSummary

    given = settings(ctx)
    document = IndexSummary.of(open_index(given.workspace.find("indexes", name))).document()
    rows = [{"key": key, "value": value} for key, value in document.items()]
    emit(rows, [Column("key"), Column("value")], format, document=document)


def indexes_verify(
    ctx: typer.Context,
    name: NameArgument = None,
    samples: Annotated[int, typer.Option(min=0, help="Number of images to encode again and compare.")] = 100,
    format: FormatOption = "table",
) -> None:
    """Compare an index with its files, and a sample of its features with newly computed ones.

    Exits with 5 if files are missing or changed, or features differ; `cmpagl index` updates such an index.

    Examples:
      cmpagl indexes verify archive
      cmpagl indexes verify archive --samples 0 --format json
    """
    from dataclasses import asdict

    from cmpagl_core.errors import ExitCode
    from cmpagl_core.search.index import open_index
    from cmpagl_core.search.manage import verify_index

    given = settings(ctx)
    index = open_index(given.workspace.find("indexes", name))
    found = verify_index(given.session, index, samples)
    document = {"name": index.info.name, "sound": found.is_sound, **asdict(found)}
    row = {
        "name": index.info.name,
        "images": found.images,
        "gone": len(found.gone),
        "changed": len(found.changed),
        "sampled": found.sampled,
        "lowest_cosine": found.lowest_cosine,
        "sound": "yes" if found.is_sound else "no",
    }
    heads = {"lowest_cosine": Column("lowest_cosine", "lowest cosine", digits=6)}
    emit([row], [heads.get(key, Column(key)) for key in row], format, document=document)
    if not found.is_sound:
        raise typer.Exit(ExitCode.MISMATCH)


def indexes_prune(ctx: typer.Context, name: NameArgument = None, format: FormatOption = "table") -> None:
    """Drop images whose files are missing or have changed. Nothing is encoded, and new images are not added.

    Examples:
      cmpagl indexes prune archive
    """
    from cmpagl_core.search.index import open_index
    from cmpagl_core.search.manage import prune_index

    given = settings(ctx)
    index = open_index(given.workspace.find("indexes", name))
    before = len(index)
    after = len(prune_index(given.session, index).index)
    emit(
        [{"name": index.info.name, "images": after, "dropped": before - after}],
        [Column("name"), Column("images"), Column("dropped")],
        format,
    )


def indexes_merge(
    ctx: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Indexes of the same model.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the new index.")],
    format: FormatOption = "table",
) -> None:
    """Merge indexes of the same model and preprocessing. Nothing is encoded, and the old ones are kept.

    Examples:
      cmpagl indexes merge north south --name both
    """
    from cmpagl_core.search.index import open_index
    from cmpagl_core.search.manage import merge_indexes

    given = settings(ctx)
    opened = [open_index(given.workspace.find("indexes", one)) for one in names]
    merged = merge_indexes(given.session, opened, name).index
    emit(
        [{"name": name, "images": len(merged), "captions": len(merged.caption_text), "path": str(merged.root)}],
        [Column("name"), Column("images"), Column("captions"), Column("path")],
        format,
    )


def indexes_export(
    ctx: typer.Context,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Output file: .parquet (GeoParquet) or .gpkg (GeoPackage).")
    ],
    name: NameArgument = None,
    features: Annotated[
        bool, typer.Option("--features", help="Include each image's features (.parquet only).")
    ] = False,
    format: FormatOption = "table",
) -> None:
    """Export an index as a table for GIS: image, path, window, date and footprint in longitude and latitude.

    Needs the extra `geo`. Images without coordinates have no footprint.

    Examples:
      cmpagl indexes export archive --out archive.gpkg
      cmpagl indexes export archive --out archive.parquet --features
    """
    from cmpagl_core.search.geo_export import export_index
    from cmpagl_core.search.index import open_index

    given = settings(ctx)
    index = open_index(given.workspace.find("indexes", name))
    placed = export_index(index, out, features)
    row = {"file": str(out), "images": len(index), "with_footprint": placed}
    emit([row], [Column("file"), Column("images"), Column("with_footprint", "with footprint")], format)
