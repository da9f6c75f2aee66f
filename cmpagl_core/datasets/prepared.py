"""A prepared data set: images, captions and splits as three checked files, opened as one frozen object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cmpagl_core.datasets.manifest import CAPTIONS_FILE, IMAGES_FILE, SPLITS, Manifest, read_manifest
from cmpagl_core.datasets.same_caption import normalise_whitespace
from cmpagl_core.errors import DataError, MismatchError
from cmpagl_core.files import FileStamp, sha256_file, sha256_text, sha256_unordered
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.reading import DEFAULT, Reading
from cmpagl_core.imagery.stamps import unchanged_files

IMAGE_COLUMNS = ("image_id", "path", "split", "width", "height", "bytes", "mtime_ns", "sha256", "scene")
_NUMBERS = ("width", "height", "bytes", "mtime_ns")
CAPTION_COLUMNS = ("caption_id", "image_id", "text")

_MAKE_AGAIN = "prepare it again with `cmpagl prepare`"


def captions_sha256(image_ids: Sequence[str], texts: Sequence[str]) -> str:
    """Order-free hash of (image id, whitespace-normalised caption) pairs; ids of public sets are file stems.

    Two layouts of one split have the same hash. Normalised text contains no tab, so distinct pairs are distinct lines.
    """
    return sha256_unordered(
        f"{image_id}\t{normalise_whitespace(text)}" for image_id, text in zip(image_ids, texts, strict=True)
    )


@dataclass(frozen=True, eq=False)
class DataSplit:
    """The images and captions of one split: N images, M captions."""

    dataset: str
    name: str
    image_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    image_sha256: tuple[str, ...]
    scenes: tuple[str, ...]  # "" if the scene class is unknown
    captions: tuple[str, ...]
    caption_ids: tuple[str, ...]
    caption_image: NDArray[np.int64]  # [M], row of the caption's own image
    reading: Reading = DEFAULT
    states: tuple[tuple[int, int], ...] = ()  # size and mtime_ns of the files when they were prepared, if known

    def __len__(self) -> int:
        return len(self.image_ids)

    @cached_property
    def images(self) -> tuple[ImageRef, ...]:
        """The images, in the order of the rows."""
        named = zip(self.image_ids, self.paths, strict=True)
        return tuple(ImageRef(image_id, path, reading=self.reading) for image_id, path in named)

    @cached_property
    def image_keys(self) -> tuple[str, ...]:
        """What tells the pixels of each image: the hash of its file, with how it is read where that was asked for."""
        if self.reading == DEFAULT:
            return self.image_sha256
        return tuple(sha256_text(f"{sha256} {self.reading.words}") for sha256 in self.image_sha256)

    @cached_property
    def sha256(self) -> str:
        """Order-free hash over (image id, whitespace-normalised caption); see `captions_sha256`."""
        return captions_sha256([self.image_ids[row] for row in self.caption_image], self.captions)

    def checked(self) -> DataSplit:
        """The split, after checking that its files are those that were prepared: by size and time, else by content.

        Raises DataError for a missing file, MismatchError for one with other content.
        """
        is_unchanged = unchanged_files()
        for path, sha256, (size, mtime_ns) in zip(self.paths, self.image_sha256, self.states, strict=True):
            try:
                same = is_unchanged(path, FileStamp(size, mtime_ns, sha256))
            except OSError as error:
                raise DataError(f"image {path} cannot be read ({error.strerror})", hint=_MAKE_AGAIN) from error
            if not same:
                raise MismatchError(
                    f"{path} has changed since {self.dataset} was prepared",
                    hint="restore it, or run `cmpagl prepare` again and train on the result",
                )
        return self

    @cached_property
    def _rows_of_captions(self) -> tuple[tuple[int, ...], ...]:
        found: list[list[int]] = [[] for _ in self.image_ids]
        for caption, row in enumerate(self.caption_image.tolist()):
            found[row].append(caption)
        return tuple(tuple(captions) for captions in found)

    def captions_of(self, row: int) -> list[int]:
        """Rows of the captions of one image."""
        return list(self._rows_of_captions[row])

    def subset(self, rows: Sequence[int] | NDArray[Any], name: str | None = None) -> DataSplit:
        """The images of these rows, in this order, each with all its captions.

        rows: distinct row numbers. Raises IndexError or ValueError for rows outside the split.
        """
        chosen = [int(row) for row in rows]
        if len(set(chosen)) != len(chosen):
            raise ValueError("a row is given twice")
        if chosen and (min(chosen) < 0 or max(chosen) >= len(self)):
            raise IndexError(f"rows must lie in 0 to {len(self) - 1}")
        captions = [(new, caption) for new, row in enumerate(chosen) for caption in self._rows_of_captions[row]]
        return DataSplit(
            dataset=self.dataset,
            name=self.name if name is None else name,
            image_ids=tuple(self.image_ids[row] for row in chosen),
            paths=tuple(self.paths[row] for row in chosen),
            image_sha256=tuple(self.image_sha256[row] for row in chosen),
            scenes=tuple(self.scenes[row] for row in chosen),
            captions=tuple(self.captions[caption] for _, caption in captions),
            caption_ids=tuple(self.caption_ids[caption] for _, caption in captions),
            caption_image=np.array([new for new, _ in captions], dtype=np.int64),
            reading=self.reading,
            states=tuple(self.states[row] for row in chosen) if self.states else (),
        )


@dataclass(frozen=True, eq=False)
class PreparedDataset:
    """A folder written by `cmpagl prepare`: `images.csv`, `captions.csv`, `manifest.json`."""

    root: Path
    name: str
    images: pd.DataFrame  # IMAGE_COLUMNS, one row an image
    captions: pd.DataFrame  # CAPTION_COLUMNS, grouped by image in the order of `images`
    manifest: Manifest

    def split(self, name: str, check_files: bool = True) -> DataSplit:
        """One split, or "all" of them, after checking that its files are unchanged.

        check_files: False if only hashes and captions are needed. Raises DataError for an unknown or empty split, and
        what `DataSplit.checked` raises.
        """
        if name not in (*SPLITS, "all"):
            raise DataError(f"{self.root}: there is no split {name!r}", hint=f"choose from {', '.join(SPLITS)} and all")
        images = self.images if name == "all" else self.images[self.images["split"] == name]
        if images.empty:
            full = [split for split in SPLITS if (self.images["split"] == split).any()]
            raise DataError(
                f"{self.root}: the {name} split of {self.name} has no images",
                hint=f"there are images in {', '.join(full)}; see `dropped` in its manifest.json",
            )
        row_of = {image_id: row for row, image_id in enumerate(images["image_id"])}
        captions = self.captions[self.captions["image_id"].isin(row_of.keys())]
        found = DataSplit(
            dataset=self.name,
            name=name,
            image_ids=tuple(images["image_id"]),
            paths=tuple(self.root / path for path in images["path"]),
            image_sha256=tuple(images["sha256"]),
            scenes=tuple(images["scene"]),
            captions=tuple(captions["text"]),
            caption_ids=tuple(captions["caption_id"]),
            caption_image=np.array([row_of[image_id] for image_id in captions["image_id"]], dtype=np.int64),
            reading=self.manifest.reading,
            states=tuple(zip(images["bytes"].tolist(), images["mtime_ns"].tolist(), strict=True)),
        )
        return found.checked() if check_files else found


def open_prepared(folder: Path) -> PreparedDataset:
    """Open a prepared data set and check that its files belong together.

    Raises DataError naming a file that is missing, was changed after it was written, or is inconsistent. Images are not
    opened here.
    """
    manifest = read_manifest(folder)
    for file, expected in manifest.files.items():
        path = folder / file
        if not path.is_file():
            raise DataError(f"{path} is missing", hint=_MAKE_AGAIN)
        if sha256_file(path) != expected:
            raise DataError(f"{path} was changed after it was written", hint=_MAKE_AGAIN)
    images = _read_table(folder / IMAGES_FILE, IMAGE_COLUMNS)
    captions = _read_table(folder / CAPTIONS_FILE, CAPTION_COLUMNS)
    _check_images(folder / IMAGES_FILE, images)
    _check_captions(folder / CAPTIONS_FILE, captions, images)
    images = images.astype(dict.fromkeys(_NUMBERS, "int64"))
    return PreparedDataset(root=folder, name=manifest.name, images=images, captions=captions, manifest=manifest)


def _read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype="str", keep_default_na=False, na_filter=False, encoding="utf-8", engine="c")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as CSV ({error})", hint=_MAKE_AGAIN) from error
    if tuple(table.columns) != columns:
        raise DataError(f"{path}: the columns are {list(table.columns)}, not {list(columns)}", hint=_MAKE_AGAIN)
    return table


def _check_images(path: Path, images: pd.DataFrame) -> None:
    _refuse(
        path, images, images["image_id"].eq("") | images["image_id"].duplicated(), "image_id", "is empty or duplicate"
    )
    _refuse(path, images, ~images["split"].isin(SPLITS), "split", "is not a split")
    _refuse(path, images, ~images["width"].str.fullmatch(r"[1-9][0-9]{0,8}"), "width", "is not a size in pixels")
    _refuse(path, images, ~images["height"].str.fullmatch(r"[1-9][0-9]{0,8}"), "height", "is not a size in pixels")
    for column, what in (("bytes", "number of bytes"), ("mtime_ns", "time in nanoseconds")):
        _refuse(
            path, images, ~images[column].str.fullmatch(r"-?[0-9]{1,18}|-?[0-8][0-9]{18}"), column, f"is not a {what}"
        )
    _refuse(path, images, ~images["sha256"].str.fullmatch(r"[0-9a-f]{64}"), "sha256", "is not a hash")


def _check_captions(path: Path, captions: pd.DataFrame, images: pd.DataFrame) -> None:
    _refuse(path, captions, captions["caption_id"].duplicated(), "caption_id", "is duplicate")
    _refuse(path, captions, ~captions["image_id"].isin(images["image_id"]), "image_id", "is not in images.csv")
    _refuse(path, captions, captions["text"].str.strip().eq(""), "text", "is blank")


def _refuse(path: Path, table: pd.DataFrame, wrong: pd.Series[bool], column: str, why: str) -> None:
    if wrong.any():
        value = table.loc[wrong, column].iloc[0]
        raise DataError(f"{path}: {column} {value!r} {why}", hint=_MAKE_AGAIN)
