"""Preview of what a model will see of an image: metadata, bands, stretch and tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from cmpagl_core.errors import DataError
from cmpagl_core.files import atomic_path
from cmpagl_core.imagery.geo import gsd_m
from cmpagl_core.imagery.image_ref import Geo, ImageRef, Scene, Window
from cmpagl_core.imagery.images import open_image
from cmpagl_core.imagery.pieces import scene_of
from cmpagl_core.imagery.reading import Reading
from cmpagl_core.imagery.scene_file import SceneFile
from cmpagl_core.imagery.scene_pool import SCENES
from cmpagl_core.imagery.tiles import Tiling

_LINE = (255, 214, 0)
_CLOSEST_LINES_PX = 6  # closer ones would hide the image


@dataclass(frozen=True)
class ImageFacts:
    """A file as it is read. rendered: how it becomes RGB in words, and unclear: why that is not known; one is empty.

    tile_px: 0 where it is taken whole; tiles: how many images an index makes of it.
    """

    path: Path
    format: str
    width: int
    height: int
    bands: str
    nodata: tuple[float | None, ...]
    geo: Geo
    gsd_m: float | None
    rendered: str
    unclear: str
    tile_px: int
    tiles: int

    def document(self) -> dict[str, Any]:
        """As one flat JSON object."""
        values = {value for value in self.nodata if value is not None}
        return {
            "path": str(self.path),
            "format": self.format,
            "width": self.width,
            "height": self.height,
            "bands": self.bands,
            "nodata": [_json_number(value) for value in sorted(values)] or None,
            "crs": self.geo.crs or None,
            "bounds": self.geo.bounds(Window(0, 0, self.width, self.height)),
            "bounds_from": self.geo.about or None,
            "gsd_m": self.gsd_m,
            "date": self.geo.date or None,
            "date_from": self.geo.dated_by or None,
            "rendered": self.rendered or None,
            "unclear": self.unclear or None,
            "tile_px": self.tile_px,
            "tiles": self.tiles,
        }


def image_facts(path: Path, reading: Reading, tiling: Tiling) -> ImageFacts:
    """Look at a file. Raises DataError when it cannot be read, or cannot be cut as asked."""
    scene = scene_of(ImageRef(path.name, path, reading=reading))
    metres = gsd_m(scene.geo, scene.width, scene.height)
    tile_px = tiling.tile_px(path, scene.width, scene.height, metres)
    said = _said(path, reading)
    return ImageFacts(
        path=path,
        format=said.format,
        width=scene.width,
        height=scene.height,
        bands=said.bands,
        nodata=said.nodata,
        geo=scene.geo,
        gsd_m=metres,
        rendered=said.rendered,
        unclear=said.unclear,
        tile_px=tile_px,
        tiles=len(tiling.windows(path, scene.width, scene.height, tile_px)) if tile_px else 1,
    )


def preview(path: Path, reading: Reading, tiling: Tiling, size_px: int) -> Image.Image:
    """The image as it is read, at most so many pixels a side, with the edges of its tiles.

    Raises DataError as `image_facts` does, and where it is not clear which bands are to be seen.
    """
    scene = scene_of(ImageRef(path.name, path, reading=reading))
    longest = max(scene.width, scene.height)
    shortest_px = max(1, size_px * min(scene.width, scene.height) // longest)
    seen = open_image(path, at_least_px=shortest_px, reading=reading)
    if max(seen.size) > size_px:
        width, height = (max(1, round(side * size_px / longest)) for side in (scene.width, scene.height))
        seen = seen.resize((width, height), Image.Resampling.BOX)
    _draw_tiles(seen, scene, path, tiling)
    return seen


def write_preview(out: Path, image: Image.Image) -> None:
    """Write it as PNG. Raises CmpaglError when the disk refuses."""
    with atomic_path(out) as partial, partial.open("wb") as stream:
        image.save(stream, "PNG")


def _draw_tiles(seen: Image.Image, scene: Scene, path: Path, tiling: Tiling) -> None:
    metres = gsd_m(scene.geo, scene.width, scene.height)
    tile_px = tiling.tile_px(path, scene.width, scene.height, metres)
    scale = seen.width / scene.width
    if not tile_px or tile_px * (1 - tiling.overlap) * scale < _CLOSEST_LINES_PX:
        return
    pen = ImageDraw.Draw(seen)
    for window in tiling.windows(path, scene.width, scene.height, tile_px):
        left, top = window.left * scale, window.top * scale
        pen.rectangle((left, top, left + window.width * scale - 1, top + window.height * scale - 1), outline=_LINE)


@dataclass(frozen=True)
class _Said:
    """The part of the facts that GDAL and Pillow tell differently."""

    format: str
    bands: str
    nodata: tuple[float | None, ...] = ()
    rendered: str = "unchanged"
    unclear: str = ""


def _said(path: Path, reading: Reading) -> _Said:
    with SCENES.opened(path, reading) as opened:
        file = opened.source
        if not isinstance(file, SceneFile):
            with Image.open(path) as plain:
                return _Said(str(plain.format), f"8 bits, {plain.mode}")
        try:
            rendered, unclear = opened.rendering(reading).words, ""
        except DataError as error:
            rendered, unclear = "", str(error)
        return _Said(file.driver, file.layout.words(), file.nodata, rendered, unclear)


def _json_number(value: float) -> float | str:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else str(value)
