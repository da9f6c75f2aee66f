"""Lists the image files under a folder, and what had to be left out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import DataError
from cmpagl_core.imagery.companions import ENVI_SUFFIXES, headers
from cmpagl_core.imagery.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is left out: its path, escaped so that any file can store it, and the reason."""

    path: str
    why: str


@dataclass(frozen=True)
class Listing:
    """Image files, sorted by path, and what was left out."""

    images: tuple[Path, ...]
    left_out: tuple[LeftOut, ...] = ()

    def whole(self) -> tuple[Path, ...]:
        """All images. Raises DataError if anything was left out."""
        if self.left_out:
            raise DataError(self.left_out[0].why, hint="fix that first, so that no image is missed")
        return self.images


@dataclass(frozen=True, eq=False)
class FileStates:
    """N image files below a folder: their paths in it (with /), sorted, and their sizes [N] and mtimes in ns [N]."""

    names: tuple[str, ...]
    sizes: NDArray[np.int64]
    mtimes_ns: NDArray[np.int64]
    left_out: tuple[LeftOut, ...] = ()


def list_images(folder: Path) -> Listing:
    """Every image file under `folder`, without hidden files and folders.

    Folders without permission and names that are not UTF-8 are left out. Raises DataError if the folder is missing or
    has no usable image.
    """
    found = list_states(folder)
    names = sorted(found.names, key=lambda name: name.split("/"))
    return Listing(tuple(Path(folder, name) for name in names), found.left_out)


def list_states(folder: Path) -> FileStates:
    """As `list_images`, with what tells a changed file, and no object for each: a large archive is seen in a second."""
    if not folder.is_dir():
        raise DataError(f"{_plain(folder)} is not a folder", hint="pass a folder of images")
    found: list[tuple[str, int, int]] = []
    left_out: list[LeftOut] = []
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(os.path.join(folder, inside)) as entries:  # noqa: PTH118 - no object for each
                for entry in entries:
                    _take(entry, f"{inside}/{entry.name}" if inside else entry.name, found, waiting, left_out)
        except OSError as error:
            path = _plain(Path(folder, inside))
            left_out.append(LeftOut(path, f"{path} cannot be listed ({error.strerror})"))
    if not found:
        why = f" that can be taken ({left_out[0].why})" if left_out else ""
        hint = f"known are {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise DataError(f"there is no image in {_plain(folder)}{why}", hint=hint)
    found.sort()
    names, sizes, mtimes = zip(*found, strict=True)
    left_out.sort(key=lambda one: one.path)
    return FileStates(names, np.array(sizes, np.int64), np.array(mtimes, np.int64), tuple(left_out))


def _take(
    entry: os.DirEntry[str],
    name: str,
    found: list[tuple[str, int, int]],
    waiting: list[str],
    left_out: list[LeftOut],
) -> None:
    """Add an image file to `found`, a folder to `waiting`, and what cannot be taken to `left_out`."""
    if entry.name.startswith("."):
        return
    try:
        is_folder = entry.is_dir()
        if is_folder and (entry.name == "__MACOSX" or entry.is_symlink()):
            return
        if not (is_folder or _is_image(entry)):
            return
        name.encode("utf-8")
        if is_folder:
            waiting.append(name)
        elif entry.is_file():
            state = entry.stat()
            found.append((name, state.st_size, state.st_mtime_ns))
    except UnicodeEncodeError:
        path = _plain(Path(entry.path))
        left_out.append(LeftOut(path, f"the name of {path} is not valid UTF-8"))
    except OSError as error:
        path = _plain(Path(entry.path))
        left_out.append(LeftOut(path, f"{path} cannot be read ({error.strerror})"))


def _is_image(entry: os.DirEntry[str]) -> bool:
    """By its suffix; one of ENVI's, which others have too, by its header."""
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - no object for each
    if suffix in IMAGE_SUFFIXES:
        return True
    return suffix in ENVI_SUFFIXES and any(header.is_file() for header in headers(Path(entry.path)))


def _plain(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
