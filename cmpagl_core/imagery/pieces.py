"""From a file to its images: itself or its tiles, with location and date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cmpagl_core.imagery.geo import date_of_name, gsd_m
from cmpagl_core.imagery.image_ref import Geo, ImageRef, Scene, Window
from cmpagl_core.imagery.images import size_of_plain
from cmpagl_core.imagery.scene_file import SceneFile
from cmpagl_core.imagery.scene_pool import SCENES
from cmpagl_core.imagery.tiles import Tiling


def scene_of(image: ImageRef) -> Scene:
    """What a file says of itself, read from its header alone. Raises DataError."""
    size = size_of_plain(image.path, image.reading)
    if size is not None:
        taken = date_of_name(image.path.name)
        return Scene(*size, Geo(date=taken, dated_by="file name" if taken else ""))
    with SCENES.opened(image.path, image.reading) as scene:
        source = scene.source
        return Scene(source.width, source.height, source.geo if isinstance(source, SceneFile) else Geo())


def windows_of(image: ImageRef, scene: Scene, tiling: Tiling) -> list[Window]:
    """The tiles that a file is cut into; none where it is taken whole. Raises DataError where it cannot be cut so."""
    tile_px = tiling.tile_px(image.path, scene.width, scene.height, gsd_m(scene.geo, scene.width, scene.height))
    return tiling.windows(image.path, scene.width, scene.height, tile_px) if tile_px else []


def pieces_of(image: ImageRef, scene: Scene, windows: Sequence[Window]) -> list[ImageRef]:
    """A file as it is, or its tiles, each named after its left and upper edge.

    Raises DataError where nothing says which bands of a scene are to be seen, or it cannot be read.
    """
    if not windows:
        return [replace(image, scene=scene if scene.geo != Geo() else None)]
    if scene.rendering is None and size_of_plain(image.path, image.reading) is None:
        with SCENES.opened(image.path, image.reading) as opened:
            scene = replace(scene, rendering=opened.rendering(image.reading) if opened.is_rendered else None)
    return [
        replace(image, image_id=f"{image.image_id}#{window.left},{window.top}", window=window, scene=scene)
        for window in windows
    ]
