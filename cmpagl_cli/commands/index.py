"""`cmpagl index`: make a folder of images, or a data set, searchable."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cmpagl_cli.commands.options import (
    ActivationOption,
    AddressOption,
    BandsOption,
    DataOption,
    DownloadOption,
    EngineOption,
    FormatOption,
    ModelOption,
    NameOption,
    OverlapOption,
    RunOption,
    StretchOption,
    TemplateOption,
    TileMetresOption,
    TileOption,
    WorkerCpusOption,
    WorkersOption,
    ray_cluster,
    settings,
)
from cmpagl_cli.views import Column, duration, emit

if TYPE_CHECKING:
    from cmpagl_core.search.indexing import BuiltIndex

Tta = Literal["none", "d4"]


def index(
    ctx: typer.Context,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]...",
            help="Folders of images with their subfolders, files, patterns in quotes, or a static STAC catalogue.",
        ),
    ] = None,
    data: DataOption = None,
    run: RunOption = None,
    model: ModelOption = None,
    activation: ActivationOption = None,
    download: DownloadOption = False,
    template: TemplateOption = None,
    name: NameOption = None,
    tta: Annotated[
        Tta | None,
        typer.Option(
            "--tta",
            help="Test-time augmentation. none: off; d4: average over 8 flips and 90-degree rotations, slower but "
            "better. Default: as before for an existing index, else the run's recipe.",
        ),
    ] = None,
    tile: TileOption = None,
    tile_m: TileMetresOption = None,
    overlap: OverlapOption = None,
    bands: BandsOption = None,
    stretch: StretchOption = None,
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            metavar="exact|faiss|milvus:URI",
            help="Search engine. faiss and Milvus are approximate: their recall of the exact top 10 is "
            "measured. Default: as before for an existing index, else exact.",
        ),
    ] = None,
    min_recall: Annotated[
        float, typer.Option("--min-recall", min=0.0, max=1.0, help="Refuse an approximate store with a lower recall.")
    ] = 0.0,
    engine: EngineOption = "local",
    address: AddressOption = None,
    workers: WorkersOption = None,
    worker_cpus: WorkerCpusOption = None,
    format: FormatOption = "table",
) -> None:
    """Encode a folder of images for `cmpagl retrieve` to search; no captions are needed.

    Without a path, indexes all images of the run's data set, with their captions. Later calls encode only new and
    changed images; broken ones are listed and left out. With --model, a published remote-sensing model or any
    open_clip model replaces the run, so nothing has to be trained. Scenes (GeoTIFF, JPEG 2000 and others) are cut into
    tiles; check one with `cmpagl image` first.

    With --engine ray, workers of a Ray cluster encode the images; they need the same files at the same places.

    Examples:
      cmpagl index ~/aerial-archive
      cmpagl index ~/aerial-archive --name archive --run ucm-cpu --tta none
      cmpagl index --data ucm
      cmpagl index ~/scenes --tile 256 --overlap 0.25 --bands sentinel-2
      cmpagl index ~/scenes --tile-m 300 --stretch range:0,3000
      cmpagl index ~/aerial-archive --store faiss --min-recall 0.95
      cmpagl index ~/aerial-archive --model remoteclip-b32 --download
      cmpagl index ~/aerial-archive --model open_clip:ViT-B-32:mine.pt --activation gelu
      cmpagl index /shared/scenes --engine ray --address head:6379
    """
    from cmpagl_core.search.build import IndexRequest, make_index

    given = settings(ctx)
    started_at = time.monotonic()
    request = IndexRequest(
        tuple(paths or ()), data, run, model, name, tta, activation, download, store, min_recall,
        bands, stretch, tile, tile_m, overlap, None if template is None else tuple(template),
        cluster=ray_cluster(engine, address, workers, worker_cpus),
    )  # fmt: skip
    built = make_index(given.session, request)
    _show(built, time.monotonic() - started_at, format)
    given.progress.say(f'search it with: cmpagl retrieve "..." --index {built.index.info.name}')


def _show(built: BuiltIndex, elapsed_s: float, format: str) -> None:
    made = built.index
    row = {
        "name": made.info.name,
        "images": len(made),
        "encoded": built.encoded,
        "left_out": len(built.left_out),
        **({"scenes": built.scenes, "empty_tiles": built.empty} if built.scenes else {}),
        "captions": len(made.caption_text),
        "model": made.info.model,
        "store": made.info.store,
        "recall_percent": None if built.recall is None else round(100 * built.recall, 1),
        "elapsed_s": round(elapsed_s, 3),
        "path": str(made.root),
    }
    if format == "table":
        row["elapsed_s"] = duration(elapsed_s)
    if built.recall is None:
        del row["recall_percent"]
    heads = {
        "recall_percent": "recall of exact top 10, %",
        "encoded": "encoded now",
        "left_out": "left out",
        "empty_tiles": "empty tiles",
        "elapsed_s": "time",
    }
    emit([row], [Column(key, heads.get(key, "")) for key in row], format)  # type: ignore[arg-type]
