"""What an earlier indexing knows of pictures: from the index that is there, and from parts of a broken-off one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.encoders.tensor_file import Array, TextTable, open_tensor_file, write_tensor_file
from cmpagl_core.errors import CmpaglError, DataError, UsageError
from cmpagl_core.imagery.stamps import Broken, FileStamp, stamp_file
from cmpagl_core.search.index import FileStamps, GalleryIndex, IndexInfo, open_index
from cmpagl_core.search.marker import INFO_FILE, read_marker

_PARTS_FOLDER = "parts"
_PART_KIND = "index_part"
_PICTURES_PER_PART = 512


@dataclass(frozen=True)
class Known:
    """A picture file whose features are known: as it was read, and their row."""

    stamp: FileStamp
    row: int


@dataclass
class PicturePart:
    """Pictures that were just encoded, on their way to the disk."""

    stamps: dict[Path, FileStamp] = field(default_factory=dict)
    features: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, stamps: Mapping[Path, FileStamp], features: NDArray[np.float32]) -> None:
        """Take up a batch."""
        if stamps:
            self.stamps.update(stamps)
            self.features.append(features)

    @property
    def is_full(self) -> bool:
        return len(self.stamps) >= _PICTURES_PER_PART


class KnownPictures:
    """Features by path and by content, of the same model and preprocessing only; and which contents are broken."""

    def __init__(self, root: Path, info: IndexInfo) -> None:
        self._root, self._info = root, info
        self._features: list[NDArray[np.float32]] = []
        self._stamps: list[FileStamp] = []
        self._row_of_path: dict[Path, int] = {}
        self._row_of_content: dict[str, int] = {}
        self._broken: dict[Path, Broken] = {}
        self._broken_content: dict[str, Broken] = {}
        self._sizes: set[int] = set()
        self._captions: dict[str, NDArray[np.float32]] = {}
        self.kept_now = 0
        self.why_anew = ""

    @classmethod
    def read(cls, root: Path, info: IndexInfo, reader: str) -> KnownPictures:
        """What is known under `root`; reader: what would decode pictures now.

        Raises UsageError when it holds the index of another source.
        """
        known = cls(root, info)
        if (root / INFO_FILE).is_file():
            try:
                known._take_index(open_index(root))
                known._take_broken(read_marker(root).left_out(reader))
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

    def look_up(self, path: Path) -> Known | Broken | None:
        """What is known of a picture file as it is now. Its content is read only if that may spare encoding it.

        Raises OSError or DataError when it cannot be read.
        """
        state = path.stat()
        seen = (state.st_size, state.st_mtime_ns)
        row, broken = self._row_of_path.get(path), self._broken.get(path)
        if row is not None and _seen(self._stamps[row]) == seen:
            return Known(self._stamps[row], row)
        if broken is not None and broken.stamp is not None and _seen(broken.stamp) == seen:
            return broken
        if state.st_size not in self._sizes:
            return None
        stamp = stamp_file(path)
        if stamp.sha256 in self._row_of_content:
            return Known(stamp, self._row_of_content[stamp.sha256])
        broken = self._broken_content.get(stamp.sha256)
        return None if broken is None else Broken(path, broken.why.replace(str(broken.path), str(path)), stamp)

    def caption(self, text: str) -> NDArray[np.float32] | None:
        """The features of a caption, if they are known."""
        return self._captions.get(text)

    def keep(self, part: PicturePart) -> None:
        """Write a part beside the index, so that it survives an interruption, and know it from now on."""
        if not part.stamps:
            return
        features = np.concatenate(part.features)
        paths = TextTable.of(str(path) for path in part.stamps)
        stamps = FileStamps.of(list(part.stamps.values()))
        path = self._root / _PARTS_FOLDER / f"{len(self._stamps):09d}.safetensors"
        arrays: dict[str, Array] = {"image_features": features, **stamps.arrays(), **paths.arrays("paths")}
        write_tensor_file(path, arrays, {"kind": _PART_KIND, **self._settings()})
        self._take(features, list(part.stamps), list(part.stamps.values()))
        self.kept_now += len(part.stamps)

    def row_of(self, path: Path) -> Known:
        """Where the features of a picture are that was just kept."""
        row = self._row_of_path[path]
        return Known(self._stamps[row], row)

    def collect(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Features [N, D] of known rows."""
        starts = np.cumsum([0, *(len(block) for block in self._features)])
        features = np.empty((len(rows), self._features[0].shape[1]), dtype=np.float32)
        wanted = np.array(rows, dtype=np.int64)
        for block, start in zip(self._features, starts.tolist(), strict=False):
            inside = (wanted >= start) & (wanted < start + len(block))
            features[inside] = block[wanted[inside] - start]
        return features

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
        if self.why_anew or index.stamps is None:
            return
        self._take(index.image_features, [Path(path) for path in index.paths], list(index.stamps))
        self._captions = dict(zip(index.captions, index.text_features, strict=True))

    def _take_broken(self, left_out: Sequence[Broken]) -> None:
        for broken in left_out:
            if broken.stamp is not None:
                self._broken[broken.path] = self._broken_content[broken.stamp.sha256] = broken
                self._sizes.add(broken.stamp.size)

    def _take_part(self, path: Path) -> None:
        file = open_tensor_file(path)
        if file.about != {"kind": _PART_KIND, **self._settings()}:
            raise DataError(f"{path} is of another model")
        features = file.array("image_features", "<f4", (None, None))
        stamps = FileStamps.read(file, len(features))
        self._take(features, [Path(text) for text in file.texts("paths", len(features))], list(stamps))

    def _take(self, features: NDArray[np.float32], paths: Sequence[Path], stamps: Sequence[FileStamp]) -> None:
        for row, (path, stamp) in enumerate(zip(paths, stamps, strict=True), start=len(self._stamps)):
            self._row_of_path[path] = row
            self._row_of_content[stamp.sha256] = row
            self._sizes.add(stamp.size)
        self._stamps += stamps
        self._features.append(features)


def _seen(stamp: FileStamp) -> tuple[int, int]:
    return stamp.size, stamp.mtime_ns


def _why_anew(before: IndexInfo, now: IndexInfo) -> str:
    """Why features of an index cannot stand beside new ones; empty when they can."""
    if before.model_sha256 != now.model_sha256:
        return "it holds features of another model"
    if before.preprocessing != now.preprocessing:
        return "its pictures were prepared otherwise"
    if before.precision != now.precision:
        return f"it was computed in {before.precision}, and here it is {now.precision}"
    return ""
