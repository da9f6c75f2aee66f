"""`cmpagl localize`: where in a scene a text is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmpagl_cli.commands.options import (
    ActivationOption,
    BandsOption,
    DownloadOption,
    FormatOption,
    ModelOption,
    RunOption,
    StretchOption,
    settings,
)
from cmpagl_cli.views import Column, emit


def localize(
    ctx: typer.Context,
    scene: Annotated[Path, typer.Argument(metavar="SCENE", help="An image or scene.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for.")],
    run: RunOption = None,
    model: ModelOption = None,
    activation: ActivationOption = None,
    download: DownloadOption = False,
    tile: Annotated[
        list[int] | None,
        typer.Option("--tile", min=16, metavar="PX", help="Side of a tile; repeatable. Default: 128, 192 and 256."),
    ] = None,
    bands: BandsOption = None,
    stretch: StretchOption = None,
    boxes: Annotated[int, typer.Option("--boxes", min=1, help="How many of the best parts to list.")] = 5,
    png: Annotated[Path, typer.Option("--png", metavar="FILE", help="Where to draw the heat over the scene.")] = Path(
        "localize.png"
    ),
    geotiff: Annotated[
        Path | None, typer.Option("--geotiff", metavar="FILE", help="Write the heat in the scene's CRS.")
    ] = None,
    geojson: Annotated[
        Path | None, typer.Option("--geojson", metavar="FILE", help="Write the best parts as footprints.")
    ] = None,
    format: FormatOption = "table",
) -> None:
    """Find the parts of a scene that fit a text best, by tiles of several sizes.

    Scores are standard deviations above the scene's mean, so they compare parts of one scene, not scenes.

    Examples:
      cmpagl localize town.tif "tennis courts beside the playground"
      cmpagl localize town.tif "storage tanks" --geotiff heat.tif --geojson tanks.geojson
      cmpagl localize town.tif "a harbour" --model remoteclip-b32 --tile 128 --tile 256
    """
    from cmpagl_core.encoders.named import named_encoder
    from cmpagl_core.encoders.open_clip import ClipOptions
    from cmpagl_core.explain.overlay import overlay, write_png
    from cmpagl_core.files import write_text
    from cmpagl_core.imagery.preview import preview
    from cmpagl_core.imagery.reading import Reading
    from cmpagl_core.imagery.tiles import WHOLE
    from cmpagl_core.search.answers import document
    from cmpagl_core.search.answers import geojson as as_geojson
    from cmpagl_core.search.localize import DEFAULT_SIZES_PX, write_geotiff
    from cmpagl_core.search.localize import localize as look

    given = settings(ctx)
    reading = Reading(bands or "auto", stretch or "auto")
    encoder = named_encoder(given.session, run, model, ClipOptions(activation, given.workspace.models, download))
    found = look(encoder, scene, text, given.progress, tile or DEFAULT_SIZES_PX, reading, boxes)
    write_png(png, overlay(preview(scene, reading, WHOLE, 1024), found.heat.clip(0)))
    if geotiff is not None:
        write_geotiff(found, geotiff)
    if geojson is not None:
        write_text(geojson, as_geojson(found.boxes))
    rows = [{**document(hit), "window": str(document(hit).get("window", ""))} for hit in found.boxes]
    peak = {"column": found.peak[0], "row": found.peak[1]}
    whole = {"text": text, "peak": peak, "cell_px": found.cell_px, "boxes": [document(hit) for hit in found.boxes]}
    emit(rows, [Column("rank"), Column("score", digits=2), Column("window")], format, document=whole)
    if format == "table":
        given.progress.say(f"best at column {peak['column']}, row {peak['row']}; drawn: {png}")
