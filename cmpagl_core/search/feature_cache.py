"""Features of images from earlier indexing: from the existing index, and from parts of an interrupted one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from cmpagl_core.encoders.encoder import Features
from cmpagl_core.encoders.tensor_file import Array, TextTable, open_tensor_file, write_tensor_file
from cmpagl_core.errors import CmpaglError, DataError, UsageError
from cmpagl_core.files import FileStamp
from cmpagl_core.imagery.image_ref import ImageRef, Scene, Window
from cmpagl_core.imagery.stamps import Broken, file_state, stamp_file
from cmpagl_core.search.index import GalleryIndex, IndexInfo, open_index
from cmpagl_core.search.marker import INFO_FILE, read_marker
from cmpagl_core.search.scenes import KnownScene
from cmpagl_core.search.stored import FileStamps, read_windows, stored_windows, window_of

_PARTS_FOLDER = "parts"
_PART_KIND = "index_part"
_IMAGES_PER_PART = 512

Place = tuple[Path, Window | None]


@dataclass(frozen=True)
class CachedFeature:
    """An image with known features: the stamp of its file and their row."""

    stamp: FileStamp
    row: int


@dataclass
class ImagePart:
    """Images that were just encoded and are not yet on disk."""

    images: list[ImageRef] = field(default_factory=list)
    stamps: list[FileStamp] = field(default_factory=list)
    features: list[Features] = field(default_factory=list)

    def add(self, images: Sequence[ImageRef], stamps: Sequence[FileStamp], features: Features) -> None:
        """Append a batch."""
        if images:
            self.images += images
            self.stamps += stamps
            self.features.append(features)

    @property
    def is_full(self) -> bool:
        return len(self.images) >= _IMAGES_PER_PART


class FeatureCache:
    """Features by path and by content, for one model and preprocessing, and the contents known to be broken."""

    def __init__(self, root: Path, info: IndexInfo) -> None:
        self._root, self._info = root, info
        self._features: list[Features] = []
        self._stamps: list[FileStamp] = []
        self._row_of_place: dict[Place, int] = {}
        self._row_of_content: dict[tuple[str, Window | None], int] = {}
        self._broken: dict[Place, Broken] = {}
        self._broken_content: dict[str, Broken] = {}
        self._sizes: set[int] = set()
        self._captions: dict[str, Features] = {}
        self._scenes: dict[Path, KnownScene] = {}
        self._states: dict[Path, tuple[int, int]] = {}
        self._stamps_now: dict[Path, FileStamp] = {}
        self.index: GalleryIndex | None = None  # whose rows come first
        self.kept_now = 0
        self.tiling = ""  # that of the index that is there
        self.rebuild_reason = ""

    @classmethod
    def read(cls, root: Path, info: IndexInfo, reader: str) -> FeatureCache:
        """The cached features under `root`; reader: the current image decoder.

        Raises UsageError if `root` has the index of another source.
        """
        cache = cls(root, info)
        if (root / INFO_FILE).is_file():
            try:
                cache._take_index(open_index(root))
                cache._take_broken(read_marker(root).left_out(reader))
            except UsageError:
                raise
            except CmpaglError:
                pass  # broken or of another version: rebuilt
        for path in sorted((root / _PARTS_FOLDER).glob("*.safetensors")):
            try:
                cache._take_part(path)
            except DataError:
                path.unlink(missing_ok=True)
        return cache

    def scene(self, path: Path) -> Scene | None:
        """What is known of a file, if it is as it was. Its content is read only where nothing but its time has changed.

        Raises OSError or DataError when it cannot be read.
        """
        known = self._scenes.get(path)
        return known.scene if known is not None and self._is_as_it_was(path, known.stamp) else None

    def has_whole(self, image: ImageRef) -> bool:
        """Whether a file was taken whole before and is as it was, by its size and time. Raises OSError."""
        row = self._row_of_place.get((image.path, None))
        return row is not None and _seen(self._stamps[row]) == self._state(image)

    def lookup(self, image: ImageRef) -> CachedFeature | Broken | None:
        """The cached result for an image in its present state. Its content is read only if that may save encoding it.

        Raises OSError or DataError if it cannot be read.
        """
        seen = self._state(image)
        scene = self._scenes.get(image.path)
        if scene is not None and image.window in scene.empty and self._is_as_it_was(image.path, scene.stamp):
            return Broken(image, "", scene.stamp, empty=True)
        row, broken = self._row_of_place.get(image.place), self._broken.get(image.place)
        if row is not None and _seen(self._stamps[row]) == seen:
            return CachedFeature(self._stamps[row], row)
        if broken is not None and broken.stamp is not None and _seen(broken.stamp) == seen:
            return replace(broken, image=image)
        if seen[0] not in self._sizes:
            return None
        stamp = self._stamp_now(image)
        row = self._row_of_content.get((stamp.sha256, image.window))
        if row is not None:
            return CachedFeature(stamp, row)
        broken = self._broken_content.get(stamp.sha256)
        if broken is None or image.window != broken.image.window:
            return None
        return Broken(image, broken.why.replace(str(broken.image.path), str(image.path)), stamp)

    def caption(self, text: str) -> Features | None:
        """The features of a caption, if they are known."""
        return self._captions.get(text)

    def keep(self, part: ImagePart) -> None:
        """Write a part beside the index, so that it survives an interruption, and add it to the cache."""
        if not part.images:
            return
        features = np.concatenate(part.features)
        paths = TextTable.of(str(image.path) for image in part.images)
        windows = stored_windows([image.window for image in part.images])
        path = self._root / _PARTS_FOLDER / f"{len(self._stamps):09d}.safetensors"
        arrays: dict[str, Array] = {
            "image_features": features,
            **FileStamps.of(part.stamps).arrays(),
            **paths.arrays("paths"),
            **({} if windows is None else {"windows": windows}),
        }
        write_tensor_file(path, arrays, {"kind": _PART_KIND, **self._settings()})
        self._take(features, [image.place for image in part.images], part.stamps)
        self.kept_now += len(part.images)

    def just_kept(self, image: ImageRef) -> CachedFeature:
        """The cached feature of an image that was just written."""
        row = self._row_of_place[image.place]
        return CachedFeature(self._stamps[row], row)

    def collect(self, rows: Sequence[int]) -> Features:
        """Features [N, D] of known rows."""
        starts = np.cumsum([0, *(len(block) for block in self._features)])
        features = np.empty((len(rows), self._features[0].shape[1]), dtype=np.float32)
        wanted = np.array(rows, dtype=np.int64)
        for block, start in zip(self._features, starts.tolist(), strict=False):
            inside = (wanted >= start) & (wanted < start + len(block))
            features[inside] = block[wanted[inside] - start]
        return features

    def forget_parts(self) -> None:
        """Remove the parts, which the index now contains."""
        shutil.rmtree(self._root / _PARTS_FOLDER, ignore_errors=True)

    def _state(self, image: ImageRef) -> tuple[int, int]:
        """Size and time of a file; of one with many pieces, looked at once."""
        if image.window is None:
            return file_state(image.path)
        if image.path not in self._states:
            self._states[image.path] = file_state(image.path)
        return self._states[image.path]

    def _stamp_now(self, image: ImageRef) -> FileStamp:
        if image.window is None:
            return stamp_file(image.path)
        if image.path not in self._stamps_now:
            self._stamps_now[image.path] = stamp_file(image.path)
        return self._stamps_now[image.path]

    def _is_as_it_was(self, path: Path, stamp: FileStamp) -> bool:
        piece = ImageRef("", path, Window(0, 0, 1, 1))
        state = self._state(piece)
        return state == _seen(stamp) or (state[0] == stamp.size and self._stamp_now(piece).sha256 == stamp.sha256)

    def _settings(self) -> dict[str, str]:
        return asdict(self._info.fingerprint)

    def take_other(self, index: GalleryIndex) -> None:
        """Know the images and captions of another index too, whose features have the same fingerprint."""
        assert index.stamps is not None, "an index of files knows its files"
        self._take(index.image_features, [index.image(row).place for row in range(len(index))], list(index.stamps))
        self._scenes |= {} if index.scenes is None else index.scenes.known()
        if index.info.templates == self._info.templates:
            self._captions |= dict(zip(index.captions, index.text_features, strict=True))

    def _take_index(self, index: GalleryIndex) -> None:
        before, now = index.info, self._info
        if (before.kind, before.source) != (now.kind, now.source):
            raise UsageError(
                f"{self._root} is the index of {before.source}, not of {now.source}",
                hint="choose another name with --name",
            )
        self.rebuild_reason = _rebuild_reason(before, now)
        if self.rebuild_reason or index.stamps is None:
            return
        self.index, self.tiling = index, before.tiling
        self.take_other(index)

    def _take_broken(self, left_out: Sequence[Broken]) -> None:
        for broken in left_out:
            if broken.stamp is not None:
                self._broken[broken.image.place] = self._broken_content[broken.stamp.sha256] = broken
                self._sizes.add(broken.stamp.size)

    def _take_part(self, path: Path) -> None:
        file = open_tensor_file(path)
        if file.about != {"kind": _PART_KIND, **self._settings()}:
            raise DataError(f"{path} is of another model")
        features = file.array("image_features", "<f4", (None, None))
        count = len(features)
        windows = read_windows(file, count)
        places = [(Path(path), window_of(windows, row)) for row, path in enumerate(file.texts("paths", count))]
        self._take(features, places, list(FileStamps.read(file, count)))

    def _take(self, features: Features, places: Sequence[Place], stamps: Sequence[FileStamp]) -> None:
        for row, (place, stamp) in enumerate(zip(places, stamps, strict=True), start=len(self._stamps)):
            self._row_of_place[place] = row
            self._row_of_content[stamp.sha256, place[1]] = row
            self._sizes.add(stamp.size)
        self._stamps += stamps
        self._features.append(features)


def has_parts(root: Path) -> bool:
    """Whether an interrupted making of an index left features beside it."""
    return any((root / _PARTS_FOLDER).glob("*.safetensors"))


def _seen(stamp: FileStamp) -> tuple[int, int]:
    return stamp.size, stamp.mtime_ns


def _rebuild_reason(before: IndexInfo, now: IndexInfo) -> str:
    """Why features of an index are not comparable with new ones; empty if they are."""
    if before.model_sha256 != now.model_sha256:
        return "it has features of another model"
    if before.reading != now.reading:
        return f"its images were read with {before.reading.words}, and now it is {now.reading.words}"
    if before.preprocessing != now.preprocessing:
        return "its images were preprocessed differently"
    if before.precision != now.precision:
        return f"it was computed in {before.precision}, and this machine uses {now.precision}"
    return ""
