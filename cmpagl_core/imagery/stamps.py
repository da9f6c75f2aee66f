"""Detects changes of image files: by size and time, and by the hash of their content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from cmpagl_core.errors import DataError
from cmpagl_core.files import FileStamp, sha256_file, sha256_text
from cmpagl_core.imagery.companions import companions
from cmpagl_core.imagery.image_ref import ImageRef


@dataclass(frozen=True)
class Broken:
    """An image that could not be read, and why; or a piece of a scene in which there is nothing to see.

    stamp: of the content that is broken; None where the file was not there, or another try may go better.
    """

    image: ImageRef
    why: str
    stamp: FileStamp | None = None
    empty: bool = False


def file_state(path: Path) -> tuple[int, int]:
    """Size in bytes and time in ns of a file with all that is read beside it. Raises OSError."""
    return _state(path, companions(path))


def stamp_file(path: Path) -> FileStamp:
    """The stamp of a file as it is now. Raises DataError when it cannot be read or changes meanwhile."""
    with opened_with_stamp(path) as (_, stamp):
        return stamp


@contextmanager
def opened_with_stamp(path: Path) -> Iterator[tuple[BinaryIO, FileStamp]]:
    """Open a file, with the stamp of the very content that is read inside the block.

    Raises DataError when it cannot be read, and at the end of the block when it was changed in between.
    """
    with open_file(path) as stream:
        beside = companions(path)
        try:
            before = _state(path, beside)
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            if beside:
                sha256 = sha256_text("\n".join([sha256, *map(sha256_file, beside)]))
            stream.seek(0)
        except OSError as error:
            raise cannot_read(path, error) from error
        yield stream, FileStamp(*before, sha256)
        check_unchanged(path, before, beside)


def unchanged_files() -> Callable[[Path, FileStamp], bool]:
    """Whether files are still as their stamps say: by size and time, by content where only the time differs.

    A file of many pieces is looked at once. Raises OSError, or DataError as `stamp_file` does.
    """

    @cache
    def is_unchanged(path: Path, stamp: FileStamp) -> bool:
        size, mtime_ns = file_state(path)
        if size != stamp.size:
            return False
        return mtime_ns == stamp.mtime_ns or stamp_file(path).sha256 == stamp.sha256

    return is_unchanged


def check_unchanged(path: Path, before: tuple[int, int], beside: Sequence[Path]) -> None:
    """Raises DataError when a file, or what is read beside it, is not as it was."""
    try:
        after = _state(path, beside)
    except OSError as error:
        raise cannot_read(path, error) from error
    if after != before:
        raise DataError(f"{path} changed while it was being read", hint="run the command again")


def open_file(path: Path) -> BufferedReader:
    """An image's bytes. Raises DataError when it is not there or may not be read."""
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise DataError(f"image {path} does not exist") from error
    except OSError as error:
        raise cannot_read(path, error) from error


def cannot_read(path: Path, error: OSError) -> DataError:
    """The sentence for a file that the system does not let us read."""
    return DataError(f"{path} cannot be read ({error.strerror})")


def _state(path: Path, beside: Sequence[Path]) -> tuple[int, int]:
    states = [one.stat() for one in (path, *beside)]
    return sum(state.st_size for state in states), max(state.st_mtime_ns for state in states)
