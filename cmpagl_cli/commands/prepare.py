"""`cmpagl prepare`: build a data set from annotations and images, or report what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmpagl_cli.commands.options import BandsOption, FormatOption, NameOption, StretchOption, settings
from cmpagl_cli.views import Column, emit

if TYPE_CHECKING:
    from cmpagl_core.datasets.prepare import PrepareResult

SourceArgument = Annotated[
    Literal["rsicd", "rsitmd", "ucm", "sydney", "folder", "shards", "synthetic"],
    typer.Argument(
        metavar="NAME", help="rsicd, rsitmd, ucm, sydney, folder (your own images), shards (WebDataset) or synthetic."
    ),
]
PlaceArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="DIR|URL",
        help="For folder: images with a captions.csv (file, caption, optionally split), or one folder per class. "
        "For shards: tar files, a folder of them, or URLs such as s3://bucket/rs5m-{000..127}.tar.",
        show_default=False,
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR|ARCHIVE", help="Folder or archive of images. Default: searched for in data/raw/NAME."),
]
AnnotationsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|DIR",
        help="Captions: Karpathy JSON, AMFMN's *_precomp, JSON lists as in ALBEF and PIR, CSV or TSV.",
    ),
]


def prepare(
    ctx: typer.Context,
    source: SourceArgument,
    place: PlaceArgument = None,
    images: ImagesOption = None,
    annotations: AnnotationsOption = None,
    name: NameOption = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out what is missing or broken, and record it.")
    ] = False,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the images into the workspace.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of splits that are not given, and of synthetic scenes.")] = 0,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="TRAIN,VAL,TEST", help="For folder and shards: shares of train, val and test. Default: 0.8,0.1,0.1."
        ),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, metavar="N", help="For synthetic: number of scenes.")] = None,
    size: Annotated[int | None, typer.Option(metavar="PX", help="For synthetic: width and height of a scene.")] = None,
    bands: BandsOption = None,
    stretch: StretchOption = None,
    format: FormatOption = "table",
) -> None:
    """Prepare a data set: check every image and caption, define the splits, and write it to data/NAME.

    Strict: unexpected counts, missing or broken images, blank captions and duplicates are all listed, and nothing is
    written. A second run with the same sources does nothing.

    Examples:
      cmpagl prepare rsicd                        # from data/raw/rsicd; says what to put there
      cmpagl prepare ucm --images UCM_captions/imgs --annotations UCM_captions/dataset.json
      cmpagl prepare rsitmd --images RSITMD.zip --annotations rsitmd_precomp
      cmpagl prepare rsicd --skip-missing --images RSICD_images --annotations dataset_rsicd.json
      cmpagl prepare folder my_images --name mine --split 0.7,0.1,0.2
      cmpagl prepare folder my_chips --bands sentinel-2 --stretch range:0,3000
      cmpagl prepare shards "s3://bucket/rs5m-{000..127}.tar" --name rs5m --split 0.98,0.01,0.01
      cmpagl prepare synthetic --count 600 --seed 1
    """
    from cmpagl_core.datasets.prepare import prepare as prepare_data
    from cmpagl_core.datasets.request import PrepareRequest, parse_fractions

    given = settings(ctx)
    request = PrepareRequest(
        source=source, name=name or "", folder=None if place is None or source == "shards" else Path(place),
        shards=place if source == "shards" else None, images=images, annotations=annotations,
        skip_missing=skip_missing, copy=copy, seed=seed, count=count, image_size_px=size,
        fractions=None if split is None else parse_fractions(split),
        bands=bands, stretch=stretch,
    )  # fmt: skip
    result = prepare_data(request, given.workspace, given.progress)
    _show(result, format)
    manifest = result.manifest
    if manifest.dropped:
        kept = "known defects of the published files" if manifest.complete else "left out"
        given.progress.say(
            f"{len(manifest.dropped):,} entries {kept}; see `dropped` in {result.root / 'manifest.json'}"
        )
    given.progress.say(manifest.protocol)


def _show(result: PrepareResult, format: Any) -> None:
    manifest = result.manifest
    rows = [{"split": split, **counts.model_dump()} for split, counts in manifest.counts.items()]
    columns = [
        Column("split"),
        Column("images"),
        Column("captions"),
        Column("unique_captions", "unique captions"),
    ]
    state = "up to date" if result.up_to_date else "prepared"
    document = {
        "name": manifest.name,
        "path": str(result.root),
        "up_to_date": result.up_to_date,
        "complete": manifest.complete,
        "protocol": manifest.protocol,
        "counts": {split: counts.model_dump() for split, counts in manifest.counts.items()},
        "split_sha256": manifest.split_sha256,
        "dropped": len(manifest.dropped),
        "sha256": manifest.sha256,
    }
    emit(rows, columns, format, title=f"{manifest.name}: {state} in {result.root}", document=document)
