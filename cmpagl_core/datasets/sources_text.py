"""Annotations in plain files: AMFMN's `*_precomp` lists, CSV and TSV tables, and one folder per class."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cmpagl_core.datasets.annotations import AnnotatedImage, Annotations, group_by_name, read_split, split_word
from cmpagl_core.errors import DataError

PRECOMP_PARTS = ("train", "val", "test")
_LONGEST_CELL = 10_000_000
_LONGEST_HEAD = 10_000
_NAME_HEADS = ("file", "filename", "file_name", "image", "image_path", "img", "path", "image_id")
_CAPTION_HEAD = re.compile(r"(caption|captions|text|sentence|raw)([ _-]?\d+)?")


def read_text(path: Path) -> str:
    """A text file as UTF-8, with or without a byte order mark. Raises DataError."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start:,})", hint="save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


def is_precomp(folder: Path) -> bool:
    """Whether a folder has AMFMN's lists: `train_caps.txt` beside `train_filename.txt`, or those of test."""
    return any(all(path.is_file() for path in _precomp_files(folder, part)) for part in PRECOMP_PARTS)


def read_precomp(folder: Path) -> Annotations:
    """Annotations from AMFMN's lists, in which train means train + val unless the folder has its own val.

    `*_caps.txt` has one caption per line, `*_filename.txt` one line per image or per caption; public copies have
    both. Raises DataError if the two do not match.
    """
    entries: list[AnnotatedImage] = []
    files: list[Path] = []
    for part in PRECOMP_PARTS:
        caps, names = _precomp_files(folder, part)
        if not caps.is_file() and not names.is_file():
            continue
        files += [caps, names]
        entries += _read_precomp_part(caps, names, part)
    return Annotations("amfmn", tuple(entries), tuple(files))


def is_table(path: Path) -> bool:
    """Whether a CSV or TSV file has a column of file names and one of captions."""
    try:
        with path.open(encoding="utf-8-sig", errors="strict", newline="") as stream:
            text = stream.readline(_LONGEST_HEAD)
        heads = next(csv.reader([text], delimiter=_delimiter(path, text)), [])
        _Columns.of([cell.strip().lower() for cell in heads], path)
    except (UnicodeDecodeError, csv.Error, DataError):
        return False
    return True


def read_table(path: Path) -> Annotations:
    """Annotations from CSV or TSV: a column of file names, one or more of captions, optionally split and scene.

    An image may have several rows. Raises DataError with the line.
    """
    text = read_text(path)
    with _long_cells():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text), strict=True)
        begins = 1  # first line of a row; reader.line_num is its last
        entries = []
        try:
            columns = _Columns.of([cell.strip().lower() for cell in next(reader, [])], path)
            begins = reader.line_num + 1
            for row in reader:
                if row:
                    entries.append(columns.entry(row, f"{path}:{begins}"))
                begins = reader.line_num + 1
        except csv.Error as error:
            raise _not_csv(path, begins, reader.line_num, error) from error
    if not entries:
        raise DataError(f"{path} has a header but no rows")
    return Annotations("table", group_by_name(entries), (path,))


def _not_csv(path: Path, begins: int, ends: int, error: csv.Error) -> DataError:
    if "end of data" in str(error):
        return DataError(
            f"{path}:{begins}: a quote in this row is never closed",
            hint="close it, or double a quote that is part of a caption",
        )
    until = "" if begins == ends else f", read until line {ends}"
    return DataError(f"{path}:{begins}: not valid CSV ({error}{until})")


def read_class_folders(folder: Path, images: Sequence[Path]) -> Annotations:
    """One folder per class: the class name gives the caption and the scene class.

    The class folders may be inside folders named train, val and test. Raises DataError for images without a class.
    """
    entries = []
    for image in images:
        parts = image.relative_to(folder).parts
        split = split_word(parts[0]) if len(parts) > 2 else None
        if len(parts) < 2 or (split is None and len(parts) > 1 and split_word(parts[0]) is not None):
            raise DataError(
                f"{image} has neither a caption nor a class",
                hint=f"add {folder / 'captions.csv'} with columns file and caption, or one folder per class",
            )
        scene = parts[1] if split is not None else parts[0]
        name = "/".join(parts)
        entries.append(AnnotatedImage(name, (class_caption(scene),), split or "", str(image), scene))
    return Annotations("class-folders", tuple(entries), (folder,))


def class_caption(scene: str) -> str:
    """A caption from a class name: `DenseResidential` and `dense_residential` become "dense residential"."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", scene)
    words = " ".join(re.findall(r"[^\W_]+", apart)).lower()
    return f"an aerial image of {words or scene}"


@dataclass(frozen=True)
class _Columns:
    """The meaning of a table's columns."""

    heads: tuple[str, ...]
    name: int
    captions: tuple[int, ...]
    split: int | None
    scene: int | None

    @classmethod
    def of(cls, heads: Sequence[str], path: Path) -> _Columns:
        name = next((heads.index(head) for head in _NAME_HEADS if head in heads), None)
        captions = tuple(place for place, head in enumerate(heads) if _CAPTION_HEAD.fullmatch(head))
        if name is None or not captions:
            raise DataError(
                f"{path}:1: the columns are {', '.join(heads)[:200] or 'none'}",
                hint="name them file, caption (or caption_1, caption_2, ...) and optionally split and scene",
            )
        places = {head: place for place, head in enumerate(heads)}
        return cls(tuple(heads), name, captions, places.get("split"), places.get("scene"))

    def entry(self, row: Sequence[str], where: str) -> AnnotatedImage:
        if len(row) != len(self.heads):
            raise DataError(
                f"{where}: {len(row)} cells where the header has {len(self.heads)}",
                hint="put captions with a comma or a quote in double quotes",
            )
        split = "" if self.split is None else read_split(row[self.split], where)
        scene = "" if self.scene is None else row[self.scene].strip()
        captions = [row[place] for place in self.captions]
        if len(captions) > 1:  # caption_1 to caption_5: an image may have fewer
            captions = [text for text in captions if text.strip()] or captions[:1]
        return AnnotatedImage(row[self.name], tuple(captions), split, where, scene)


def _delimiter(path: Path, text: str) -> str:
    head = text.partition("\n")[0]
    if path.suffix.lower() == ".tsv" or ("\t" in head and "," not in head):
        return "\t"
    return ";" if ";" in head and "," not in head else ","  # written by spreadsheets in many European locales


@contextmanager
def _long_cells() -> Iterator[None]:
    """Allow cells of over 131,072 characters, the csv module's process-wide limit, while a table is read."""
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _precomp_files(folder: Path, part: str) -> tuple[Path, Path]:
    return folder / f"{part}_caps.txt", folder / f"{part}_filename.txt"


def _read_precomp_part(caps: Path, names: Path, part: str) -> list[AnnotatedImage]:
    captions, images = _lines(caps), _lines(names)
    if not images or len(captions) % len(images):
        raise DataError(
            f"{caps} has {len(captions):,} lines and {names} {len(images):,}: not a whole number of captions per image"
        )
    if len(captions) == len(images):
        lines = zip(images, captions, strict=True)
        named = [AnnotatedImage(name, (text,), part, f"{names}:{row}") for row, (name, text) in enumerate(lines, 1)]
        return list(group_by_name(named))
    each = len(captions) // len(images)
    return [
        AnnotatedImage(name, tuple(captions[row * each : (row + 1) * each]), part, f"{names}:{row + 1}")
        for row, name in enumerate(images)
    ]


def _lines(path: Path) -> list[str]:
    """Lines split at newlines only: captions may contain other characters that Python treats as line ends."""
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    return lines[:-1] if lines[-1] == "" else lines
