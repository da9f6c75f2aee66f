"""The common form of all annotation formats: images by name, each with its captions and, if given, its split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from cmpagl_core.errors import DataError

Layout = Literal["karpathy", "amfmn", "json-list", "table", "class-folders", "shards"]

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "restval", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}


@dataclass(frozen=True)
class AnnotatedImage:
    """One image of the annotations; `name` is untrusted and never used as a path."""

    name: str
    captions: tuple[str, ...]
    split: str  # train, val, test; "" where the format gives none
    where: str  # position in the annotations, for messages
    scene: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """The name's folders and file, without anything that leads upwards or to a root."""
        pieces = self.name.replace("\\", "/").split("/")
        return tuple(piece for piece in pieces if piece not in ("", ".", ".."))

    @property
    def stem(self) -> str:
        """The file name without folders and without its extension."""
        return PurePosixPath(self.parts[-1]).stem if self.parts else ""


@dataclass(frozen=True)
class Annotations:
    """Everything read from one annotation source."""

    layout: Layout
    images: tuple[AnnotatedImage, ...]
    files: tuple[Path, ...]

    @property
    def place(self) -> str:
        """The source's name in messages."""
        return str(self.files[0]) if len(self.files) == 1 else str(self.files[0].parent)


def split_word(text: str) -> str | None:
    """train, val or test, for any common name of them; None for another word."""
    return _SPLIT_WORDS.get(text.strip().lower())


def read_split(text: str, where: str) -> str:
    """The split that a cell or key names. Raises DataError if it names none."""
    split = split_word(text)
    if split is None:
        raise DataError(f"{where}: split {text[:60]!r} is not train, val or test")
    return split


def group_by_name(entries: Iterable[AnnotatedImage]) -> tuple[AnnotatedImage, ...]:
    """Join entries of one image and split (formats with one line per caption), in order of first appearance."""
    groups: dict[tuple[str, str], AnnotatedImage] = {}
    captions: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        key = (entry.name, entry.split)
        groups.setdefault(key, entry)
        captions.setdefault(key, []).extend(entry.captions)
    return tuple(replace(entry, captions=tuple(captions[key])) for key, entry in groups.items())
