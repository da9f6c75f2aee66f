"""Scenes and images as JSON values: in an index's table of scenes, and on their way to other processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cmpagl_core.imagery.image_ref import Geo, ImageRef, Scene, Window
from cmpagl_core.imagery.reading import Reading
from cmpagl_core.imagery.stretch import Rendering


def scene_to_json(scene: Scene) -> dict[str, Any]:
    """A scene, for `scene_of_json`."""
    return asdict(scene)


def scene_of_json(said: Any) -> Scene:
    """Raises KeyError, TypeError or ValueError where it makes no sense."""
    transform = said["geo"]["transform"]
    geo = Geo(**said["geo"] | {"transform": None if transform is None else tuple(map(float, transform))})
    rendering = said["rendering"]
    if rendering is not None:
        rendering = Rendering(**rendering | {key: tuple(rendering[key]) for key in ("bands", "lows", "highs")})
    return Scene(said["width"], said["height"], geo, rendering)


def images_to_json(images: Sequence[ImageRef]) -> dict[str, Any]:
    """Images for `images_of_json`; a scene that several are pieces of is said once."""
    scenes: list[Scene] = []
    place: dict[int, int] = {}

    def number_of(scene: Scene | None) -> int | None:
        if scene is not None and id(scene) not in place:
            place[id(scene)] = len(scenes)
            scenes.append(scene)
        return None if scene is None else place[id(scene)]

    listed = [
        {
            "id": image.image_id,
            "path": str(image.path),
            "window": None if image.window is None else asdict(image.window),
            "reading": asdict(image.reading),
            "scene": number_of(image.scene),
        }
        for image in images
    ]
    return {"scenes": [scene_to_json(scene) for scene in scenes], "images": listed}


def images_of_json(said: Any) -> list[ImageRef]:
    """Raises KeyError, TypeError or ValueError where it makes no sense."""
    scenes = [scene_of_json(scene) for scene in said["scenes"]]
    return [
        ImageRef(
            one["id"],
            Path(one["path"]),
            None if one["window"] is None else Window(**one["window"]),
            Reading(**one["reading"]),
            None if one["scene"] is None else scenes[one["scene"]],
        )
        for one in said["images"]
    ]
