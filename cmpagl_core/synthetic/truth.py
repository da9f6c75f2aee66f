"""What a synthetic scene truly shows: objects with boxes, their relations and its captions (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmpagl_core.errors import DataError
from cmpagl_core.files import read_json

TRUTH_VERSION = 1

Box = tuple[int, int, int, int]
Relation = tuple[str, str, str]


@dataclass(frozen=True)
class SceneObject:
    """All things of one class and colour. colour: a word, `mixed`, or empty where colour says nothing."""

    name: str
    count: int
    colour: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class SceneTruth:
    """One image's truth. boxes are [x0, y0, x1, y1] in pixels, x1 and y1 exclusive, inside the image."""

    file: str
    scene: str
    kind: str
    seed: int
    number: int
    image_size_px: int
    metres_per_px: float
    objects: tuple[SceneObject, ...]
    relations: tuple[Relation, ...]
    captions: tuple[str, ...]

    def boxes_of(self, name: str) -> tuple[Box, ...]:
        """Every box of one class, whatever its colour."""
        return tuple(box for thing in self.objects if thing.name == name for box in thing.boxes)

    def count_of(self, name: str) -> int:
        """How many things of one class the image shows."""
        return sum(thing.count for thing in self.objects if thing.name == name)


def shows(truth: SceneTruth, name: str) -> bool:
    """Whether the image shows at least one thing of that class (`airport`, `sea`, `storage tank`, ...)."""
    return truth.count_of(name) > 0


def truth_as_json(truth: SceneTruth) -> dict[str, Any]:
    """The truth as it is written beside the image."""
    return {
        "format_version": TRUTH_VERSION,
        "file": truth.file,
        "scene": truth.scene,
        "kind": truth.kind,
        "seed": truth.seed,
        "number": truth.number,
        "image_size_px": truth.image_size_px,
        "metres_per_px": truth.metres_per_px,
        "objects": [
            {"class": thing.name, "count": thing.count, "colour": thing.colour, "boxes": [list(b) for b in thing.boxes]}
            for thing in truth.objects
        ],
        "relations": [list(relation) for relation in truth.relations],
        "captions": list(truth.captions),
    }


def read_truth(path: Path) -> SceneTruth:
    """Read one `truth/<stem>.json`. Raises DataError when it is missing, of another version or not whole."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format_version") != TRUTH_VERSION:
        raise DataError(
            f"{path} is not a scene's truth of version {TRUTH_VERSION}", hint="make the set again with `cmpagl prepare`"
        )
    try:
        return _truth_from(content)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a whole truth file ({error})", hint="make the set again") from error


def _truth_from(content: dict[str, Any]) -> SceneTruth:
    return SceneTruth(
        file=str(content["file"]),
        scene=str(content["scene"]),
        kind=str(content["kind"]),
        seed=int(content["seed"]),
        number=int(content["number"]),
        image_size_px=int(content["image_size_px"]),
        metres_per_px=float(content["metres_per_px"]),
        objects=tuple(
            SceneObject(str(thing["class"]), int(thing["count"]), str(thing["colour"]), _boxes(thing["boxes"]))
            for thing in content["objects"]
        ),
        relations=tuple(_relation(relation) for relation in content["relations"]),
        captions=tuple(str(caption) for caption in content["captions"]),
    )


def _boxes(rows: Any) -> tuple[Box, ...]:
    boxes: list[Box] = []
    for row in rows:
        x0, y0, x1, y1 = (int(value) for value in row)
        boxes.append((x0, y0, x1, y1))
    return tuple(boxes)


def _relation(row: Any) -> Relation:
    subject, word, target = (str(value) for value in row)
    return subject, word, target
