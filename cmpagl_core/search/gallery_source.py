"""The images of a gallery: those of a folder, or of a prepared data set with their captions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, overload

from cmpagl_core.datasets.prepared import PreparedDataset
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.listing import FileStates, list_states
from cmpagl_core.imagery.reading import DEFAULT, Reading
from cmpagl_core.imagery.stamps import Broken
from cmpagl_core.imagery.tiles import WHOLE, Tiling


@dataclass(frozen=True)
class Entry:
    """One searchable image, and its captions (none for a plain folder)."""

    image: ImageRef
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class GallerySource:
    """The images of a gallery, sorted by image id, and their origin."""

    kind: Literal["folder", "files", "dataset", "merged"]
    source: str
    dataset: str
    manifest_sha256: str
    entries: Sequence[Entry]
    left_out: tuple[Broken, ...] = ()  # what was there and could not be listed
    reading: Reading = DEFAULT  # that of its images
    tiling: Tiling = WHOLE  # how files of several megapixels are taken
    templates: tuple[str, ...] = ()  # wordings in which texts are encoded, averaged
    files: FileStates | None = None  # of a folder: its entries, as the file system has them
    is_cut: bool = False  # the entries are images as they are, tiles among them


class _FolderEntries(Sequence[Entry]):
    """The images of a folder, each created on access."""

    def __init__(self, root: str, names: Sequence[str], reading: Reading) -> None:
        self._root, self._names, self._reading = root, names, reading

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, row: int) -> Entry: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[Entry]: ...

    def __getitem__(self, row: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(row, slice):
            return _FolderEntries(self._root, self._names[row], self._reading)
        name = self._names[row]
        return Entry(ImageRef(name, Path(self._root, name), reading=self._reading))


def folder_source(folder: Path, reading: Reading = DEFAULT, tiling: Tiling = WHOLE) -> GallerySource:
    """Every image under a folder, with its relative path as its id. Raises DataError if there is none."""
    root = os.path.abspath(folder)  # noqa: PTH100 - resolve() would follow links
    files = list_states(Path(root))
    left_out = tuple(
        Broken(ImageRef(os.path.relpath(one.path, root), Path(one.path)), one.why) for one in files.left_out
    )
    entries = _FolderEntries(root, files.names, reading)
    return GallerySource("folder", root, "", "", entries, left_out, reading, tiling, files=files)


def dataset_source(prepared: PreparedDataset) -> GallerySource:
    """Every image of a prepared data set, of all its splits, with its captions."""
    split = prepared.split("all")
    entries = [
        Entry(
            replace(image, path=Path(os.path.abspath(image.path))),  # noqa: PTH100 - resolve() would follow links
            tuple(split.captions[caption] for caption in split.captions_of(row)),
        )
        for row, image in enumerate(split.images)
    ]
    root = os.path.abspath(prepared.root)  # noqa: PTH100 - as above
    reading = prepared.manifest.reading
    return GallerySource("dataset", root, prepared.name, prepared.manifest.sha256, by_id(entries), reading=reading)


def by_id(entries: list[Entry]) -> tuple[Entry, ...]:
    """In the order of an index."""
    return tuple(sorted(entries, key=lambda entry: entry.image.image_id))
