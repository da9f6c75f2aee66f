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
        list[str] | None,
        typer.Argument(
            metavar="[PATH|URL]...",
            help="Folders of images with their subfolders, files, patterns in quotes, a static STAC catalogue; or "
            "addresses, of which the images are fetched: http(s):// of a file or a STAC API, s3:// and other stores.",
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
    bbox: Annotated[
        str | None,
        typer.Option("--bbox", metavar="W,S,E,N", help="Of addresses: only what lies in this box, in degrees."),
    ] = None,
    since: Annotated[str, typer.Option("--from", metavar="DATE", help="Of a STAC address: from this day on.")] = "",
    until: Annotated[str, typer.Option("--to", metavar="DATE", help="Of a STAC address: up to this day.")] = "",
    collection: Annotated[
        list[str] | None, typer.Option("--collection", metavar="NAME", help="Of a STAC address; repeatable.")
    ] = None,
    asset: Annotated[
        list[str] | None,
        typer.Option(
            "--asset", metavar="KEY", help="Of a STAC address, as in visual; repeatable. Default: all images."
        ),
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Items of a STAC address at most, or files.")] = 10_000,
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

    With --bbox, only the part of each GeoTIFF inside it is read from an address. Fetched images are kept in the
    workspace, below remote/.

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
      cmpagl index https://stac.example.org/v1 --collection sentinel-2-l2a --asset visual --bbox 12.4,55.6,12.7,55.8
      cmpagl index s3://archive/2024/ --name archive
      cmpagl index /shared/scenes --engine ray --address head:6379
    """
    from cmpagl_core.imagery.remote_file import is_url
    from cmpagl_core.search.build import IndexRequest, make_index
    from cmpagl_core.search.filters import parse_box
    from cmpagl_core.search.stac import ItemQuery

    given = settings(ctx)
    started_at = time.monotonic()
    urls = tuple(path for path in paths or () if is_url(path))
    local = tuple(Path(path) for path in paths or () if path not in urls)
    box = None if bbox is None else parse_box(bbox)
    items = ItemQuery(box, since, until, tuple(collection or ()), tuple(asset or ()), most)
    request = IndexRequest(
        local, data, run, model, name, tta, activation, download, store, min_recall,
        bands, stretch, tile, tile_m, overlap, None if template is None else tuple(template),
        cluster=ray_cluster(engine, address, workers, worker_cpus),
        urls=urls, items=None if items == ItemQuery() else items,
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
