"""`cmpagl image`: show what a model will see of a file, before anything is encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cmpagl_cli.commands.options import (
    BandsOption,
    FormatOption,
    OverlapOption,
    StretchOption,
    TileMetresOption,
    TileOption,
    settings,
)
from cmpagl_cli.views import Column, emit


def image(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Image or scene.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write a PNG preview with the tile grid.")
    ] = None,
    size: Annotated[
        int, typer.Option("--size", min=64, max=8192, metavar="PX", help="Longer side of the PNG in pixels.")
    ] = 1024,
    bands: BandsOption = None,
    stretch: StretchOption = None,
    tile: TileOption = None,
    tile_m: TileMetresOption = None,
    overlap: OverlapOption = None,
    format: FormatOption = "table",
) -> None:
    """Show how an image is read: bands, stretch, tiles, CRS, bounds, date and nodata, as `cmpagl index` will read it.

    Run it before indexing scenes: a wrong choice of bands is visible in the PNG. No model is loaded.

    Examples:
      cmpagl image scene.tif --out preview.png
      cmpagl image scene.tif --bands 4,3,2 --stretch range:0,3000 --tile 256 --out preview.png
      cmpagl image sar.tif --stretch db:-25,0 --format json
    """
    from cmpagl_core.imagery.preview import image_facts, preview, write_preview
    from cmpagl_core.imagery.reading import AUTO, Reading
    from cmpagl_core.imagery.tiles import Tiling

    reading, tiling = Reading(bands or AUTO, stretch or AUTO), Tiling(tile, tile_m, overlap or 0.0)
    facts = image_facts(file, reading, tiling)
    document = facts.document()
    rows = [
        {"what": _NAMES.get(key, key), "value": _as_text(value)} for key, value in document.items() if value is not None
    ]
    emit(rows, [Column("what"), Column("value")], format, document=document)
    given = settings(ctx)
    if out is not None:
        write_preview(out, preview(file, reading, tiling, size))
        given.progress.say(f"written: {out}")
    elif facts.unclear:
        given.progress.say(facts.unclear)


_NAMES = {
    "bounds_from": "approximate bounds from",
    "gsd_m": "metres per pixel",
    "date_from": "date from",
    "rendered": "seen as",
    "tile_px": "tile",
}


def _as_text(value: Any) -> str:
    """Format a value; coordinates keep the digits that matter for a pixel."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_as_text, value))
    return f"{value:.9g}" if isinstance(value, float) else str(value)
