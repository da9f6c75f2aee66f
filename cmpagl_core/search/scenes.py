"""Records of georeferenced or tiled files in an index: one line of JSON per file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.encoders.tensor_file import Array, TensorFile, TextTable
from cmpagl_core.errors import DataError
from cmpagl_core.files import FileStamp, canonical_json
from cmpagl_core.imagery.image_ref import ImageRef, Scene, Window
from cmpagl_core.imagery.scene_json import scene_of_json, scene_to_json

_OPENED_AT_ONCE = 4096


@dataclass(frozen=True)
class KnownScene:
    """A file as it was read, and its empty tiles."""

    stamp: FileStamp
    scene: Scene
    empty: frozenset[Window] = frozenset()


@dataclass(frozen=True, eq=False)
class SceneTable:
    """The scenes of an index. texts: S lines of JSON; of_row: int64 [N], an image's scene, -1 for none.

    empty: int64 [E, 5], empty tiles: scene, left, top, width and height.
    """

    texts: TextTable
    of_row: NDArray[np.int64]
    empty: NDArray[np.int64]

    @classmethod
    def of(
        cls, images: Sequence[ImageRef], stamps: Sequence[FileStamp], empty: Iterable[tuple[ImageRef, FileStamp]]
    ) -> SceneTable | None:
        """The table of some images and empty tiles; None if none has a scene."""
        place: dict[Path, int] = {}
        texts: list[str] = []

        def row_of(image: ImageRef, stamp: FileStamp) -> int:
            if image.scene is None:
                return -1
            if image.path not in place:
                place[image.path] = len(texts)
                texts.append(_to_text(image.path, stamp, image.scene))
            return place[image.path]

        of_row = [row_of(image, stamp) for image, stamp in zip(images, stamps, strict=True)]
        seen = [(row_of(image, stamp), image.window) for image, stamp in empty]
        tiles = [(row, w.left, w.top, w.width, w.height) for row, w in seen if w is not None and row >= 0]
        if not texts:
            return None
        return cls(
            TextTable.of(texts), np.array(of_row, dtype=np.int64), np.array(tiles, dtype=np.int64).reshape(-1, 5)
        )

    @classmethod
    def read(cls, file: TensorFile, count: int) -> SceneTable | None:
        """That of `count` images, if the file has one. Raises DataError when it makes no sense."""
        if "scene_of_row" not in file.arrays:
            return None
        texts, of_row = file.texts("scenes"), file.array("scene_of_row", "<i8", (count,))
        empty = file.array("empty_tiles", "<i8", (None, 5))
        if any(len(rows) and not -1 <= rows.min() <= rows.max() < len(texts) for rows in (of_row, empty[:, 0])):
            raise DataError(f"{file.path} refers to scenes that do not exist", hint="rebuild it with `cmpagl index`")
        return cls(texts, of_row, empty)

    def arrays(self) -> Mapping[str, Array]:
        """What to write."""
        return {**self.texts.arrays("scenes"), "scene_of_row": self.of_row, "empty_tiles": self.empty}

    def scene(self, row: int) -> Scene | None:
        """That of one image. Raises DataError when it is not as it was written."""
        place = int(self.of_row[row])
        return None if place < 0 else _from_text(self.texts[place])[2]

    def known(self) -> dict[Path, KnownScene]:
        """All scenes by their path. Raises DataError as `scene` does."""
        empty: dict[int, list[Window]] = {}
        for row, *window in self.empty.tolist():
            empty.setdefault(row, []).append(Window(*window))
        found = [_from_text(text) for text in self.texts]
        return {
            path: KnownScene(stamp, scene, frozenset(empty.get(row, ())))
            for row, (path, stamp, scene) in enumerate(found)
        }


def _to_text(path: Path, stamp: FileStamp, scene: Scene) -> str:
    return canonical_json({"path": str(path), "stamp": asdict(stamp), "scene": scene_to_json(scene)})


@lru_cache(maxsize=_OPENED_AT_ONCE)
def _from_text(text: str) -> tuple[Path, FileStamp, Scene]:
    try:
        content: Any = json.loads(text)
        return Path(content["path"]), FileStamp(**content["stamp"]), scene_of_json(content["scene"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        sentence = "an index says of a scene what makes no sense"
        raise DataError(sentence, hint="rebuild it with `cmpagl index`") from error
