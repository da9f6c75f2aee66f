"""What an earlier indexing knows of pictures: from the index that is there, and from parts of a broken-off one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.encoders.tensor_file import Array, TextTable, open_tensor_file, write_tensor_file
from cmpagl_core.errors import CmpaglError, DataError, UsageError
from cmpagl_core.files import sha256_file
from cmpagl_core.search.index import INFO_FILE, Fingerprints, GalleryIndex, IndexInfo, open_index

_PARTS_FOLDER = "parts"
_PART_KIND = "index_part"
_PICTURES_PER_PART = 512


@dataclass(frozen=True)
class Picture:
    """A picture file as it is now; known_row: where its features are known, None when it must be encoded."""

    path: Path
    size: int
    mtime_ns: int
    sha256: str
    known_row: int | None


@dataclass
class PicturePart:
    """Pictures that were just encoded, on their way to the disk."""

    pictures: list[Picture] = field(default_factory=list)
    features: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, pictures: list[Picture], features: NDArray[np.float32]) -> None:
        """Take up a batch."""
        if pictures:
            self.pictures += pictures
            self.features.append(features)

    @property
    def is_full(self) -> bool:
        return len(self.pictures) >= _PICTURES_PER_PART


class KnownPictures:
    """Features by path and by content, of the same model and preprocessing only."""

    def __init__(self, root: Path, info: IndexInfo) -> None:
        self._root, self._info = root, info
        self._features: list[NDArray[np.float32]] = []
        self._pictures: list[Picture] = []
        self._row_of_path: dict[Path, int] = {}
        self._row_of_content: dict[str, int] = {}
        self._sizes: set[int] = set()
        self._captions: dict[str, NDArray[np.float32]] = {}
        self.kept_now = 0
        self.why_anew = ""

    @classmethod
    def read(cls, root: Path, info: IndexInfo) -> KnownPictures:
        """What is known under `root`. Raises UsageError when it holds the index of another source."""
        known = cls(root, info)
        if (root / INFO_FILE).is_file():
            try:
                known._take_index(open_index(root))
            except UsageError:
                raise
            except CmpaglError:
                pass  # broken or of another version: made anew
        for path in sorted((root / _PARTS_FOLDER).glob("*.safetensors")):
            try:
                known._take_part(path)
            except DataError:
                path.unlink(missing_ok=True)
        return known

    def look_at(self, path: Path) -> Picture:
        """A picture file as it is now. Its content is read only if that may spare encoding it. Raises OSError."""
        state = path.stat()
        row = self._row_of_path.get(path)
        if row is not None:
            before = self._pictures[row]
            if (before.size, before.mtime_ns) == (state.st_size, state.st_mtime_ns):
                return before
        if state.st_size in self._sizes:
            content = sha256_file(path)
            row = self._row_of_content.get(content)
            return Picture(path, state.st_size, state.st_mtime_ns, content, row)
        return Picture(path, state.st_size, state.st_mtime_ns, "", None)

    def caption(self, text: str) -> NDArray[np.float32] | None:
        """The features of a caption, if they are known."""
        return self._captions.get(text)

    def keep(self, part: PicturePart) -> None:
        """Write a part beside the index, so that it survives an interruption, and know it from now on."""
        if not part.pictures:
            return
        pictures = [with_content(picture) for picture in part.pictures]
        arrays = {"image_features": np.concatenate(part.features), **_stored(pictures)}
        path = self._root / _PARTS_FOLDER / f"{len(self._pictures):09d}.safetensors"
        write_tensor_file(path, arrays, {"kind": _PART_KIND, **self._settings()})
        self._take(arrays["image_features"], pictures)
        self.kept_now += len(pictures)

    def collect(self, pictures: Sequence[Picture]) -> tuple[NDArray[np.float32], Fingerprints]:
        """Features [N, D] and fingerprints of pictures that are all known by now."""
        rows = [
            self._row_of_path[picture.path] if picture.known_row is None else picture.known_row for picture in pictures
        ]
        starts = np.cumsum([0, *(len(block) for block in self._features)])
        features = np.empty((len(rows), self._features[0].shape[1]), dtype=np.float32)
        wanted = np.array(rows, dtype=np.int64)
        for block, start in zip(self._features, starts.tolist(), strict=False):
            inside = (wanted >= start) & (wanted < start + len(block))
            features[inside] = block[wanted[inside] - start]
        found = [
            Picture(picture.path, picture.size, picture.mtime_ns, self._pictures[row].sha256, row)
            for picture, row in zip(pictures, rows, strict=True)
        ]
        stored = _stored(found)
        return features, Fingerprints(stored["sizes"], stored["mtimes_ns"], stored["sha256"])

    def forget_parts(self) -> None:
        """Remove the parts: the index holds them now."""
        shutil.rmtree(self._root / _PARTS_FOLDER, ignore_errors=True)

    def _settings(self) -> dict[str, str]:
        info = self._info
        return {"model_sha256": info.model_sha256, "preprocessing": info.preprocessing, "precision": info.precision}

    def _take_index(self, index: GalleryIndex) -> None:
        before, now = index.info, self._info
        if (before.kind, before.source) != (now.kind, now.source):
            raise UsageError(
                f"{self._root} holds the index of {before.source}, not of {now.source}",
                hint="give another name with --name",
            )
        self.why_anew = _why_anew(before, now)
        if self.why_anew or index.fingerprints is None:
            return
        self._take(index.image_features, _pictures(index.paths, index.fingerprints))
        self._captions = dict(zip(index.captions, index.text_features, strict=True))

    def _take_part(self, path: Path) -> None:
        file = open_tensor_file(path)
        if file.about != {"kind": _PART_KIND, **self._settings()}:
            raise DataError(f"{path} is of another model")
        features = file.array("image_features", "<f4", (None, None))
        count = len(features)
        fingerprints = Fingerprints(
            file.array("sizes", "<i8", (count,)),
            file.array("mtimes_ns", "<i8", (count,)),
            file.array("sha256", "|u1", (count, 32)),
        )
        self._take(features, _pictures(file.texts("paths", count), fingerprints))

    def _take(self, features: NDArray[np.float32], pictures: list[Picture]) -> None:
        start = len(self._pictures)
        for row, picture in enumerate(pictures, start=start):
            known = Picture(picture.path, picture.size, picture.mtime_ns, picture.sha256, row)
            self._pictures.append(known)
            self._row_of_path[picture.path] = row
            self._row_of_content[picture.sha256] = row
            self._sizes.add(picture.size)
        self._features.append(features)


def with_content(picture: Picture) -> Picture:
    """The picture with the hash of its file. Raises OSError."""
    if picture.sha256:
        return picture
    return Picture(picture.path, picture.size, picture.mtime_ns, sha256_file(picture.path), picture.known_row)


def _why_anew(before: IndexInfo, now: IndexInfo) -> str:
    """Why features of an index cannot stand beside new ones; empty when they can."""
    if before.model_sha256 != now.model_sha256:
        return "it holds features of another model"
    if before.preprocessing != now.preprocessing:
        return "its pictures were prepared otherwise"
    if before.precision != now.precision:
        return f"it was computed in {before.precision}, and here it is {now.precision}"
    return ""


def _stored(pictures: list[Picture]) -> dict[str, Array]:
    content = b"".join(bytes.fromhex(picture.sha256) for picture in pictures)
    return {
        "sizes": np.array([picture.size for picture in pictures], dtype=np.int64),
        "mtimes_ns": np.array([picture.mtime_ns for picture in pictures], dtype=np.int64),
        "sha256": np.frombuffer(content, dtype=np.uint8).reshape(-1, 32),
        **TextTable.of(str(picture.path) for picture in pictures).arrays("paths"),
    }


def _pictures(paths: TextTable, fingerprints: Fingerprints) -> list[Picture]:
    return [
        Picture(Path(path), size, mtime_ns, content.tobytes().hex(), None)
        for path, size, mtime_ns, content in zip(
            paths, fingerprints.sizes.tolist(), fingerprints.mtimes_ns.tolist(), fingerprints.sha256, strict=True
        )
    ]
