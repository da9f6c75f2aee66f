"""The image files under a folder, and what of it cannot be taken."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cmpagl_core.errors import DataError
from cmpagl_core.imagery.companions import ENVI_SUFFIXES, headers
from cmpagl_core.imagery.images import IMAGE_SUFFIXES


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that cannot be taken: its path, spelled so that any file can hold it, and a sentence."""

    path: str
    why: str


@dataclass(frozen=True)
class Listing:
    """Image files, sorted by path, and what was left out."""

    images: tuple[Path, ...]
    left_out: tuple[LeftOut, ...] = ()

    def whole(self) -> tuple[Path, ...]:
        """The images, where none may be missed. Raises DataError when anything was left out."""
        if self.left_out:
            raise DataError(self.left_out[0].why, hint="mend that first, so that no image is missed")
        return self.images


def list_images(folder: Path) -> Listing:
    """Every image file under `folder`; hidden files and folders are not looked at.

    A folder that may not be listed and a name that is not UTF-8 are left out. Raises DataError when the folder is
    missing or holds no image that can be taken.
    """
    if not folder.is_dir():
        raise DataError(f"{_plain(folder)} is not a folder", hint="give a folder with images in it")
    found: list[Path] = []
    left_out: list[LeftOut] = []

    def is_taken(path: Path, is_folder: bool) -> bool:
        hidden = path.name.startswith(".") or (is_folder and path.name == "__MACOSX")
        if hidden or not (is_folder or _is_image(path)):
            return False
        try:
            str(path).encode("utf-8")
            return is_folder or path.is_file()
        except UnicodeEncodeError:
            why = f"the name of {_plain(path)} is not valid UTF-8"
        except OSError as error:
            why = f"{path} cannot be read ({error.strerror})"
        left_out.append(LeftOut(_plain(path), why))
        return False

    def cannot_list(error: OSError) -> None:
        path = _plain(Path(error.filename))
        left_out.append(LeftOut(path, f"{path} cannot be listed ({error.strerror})"))

    for parent, folders, files in os.walk(folder, onerror=cannot_list):
        folders[:] = [name for name in folders if is_taken(Path(parent, name), is_folder=True)]
        found += [path for name in files if is_taken(path := Path(parent, name), is_folder=False)]
    if not found:
        why = f" that can be taken ({left_out[0].why})" if left_out else ""
        hint = f"known are {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise DataError(f"there is no image in {_plain(folder)}{why}", hint=hint)
    return Listing(tuple(sorted(found)), tuple(left_out))


def _is_image(path: Path) -> bool:
    """By its suffix; one of ENVI's, which others have too, by its header."""
    suffix = path.suffix.lower()
    return suffix in IMAGE_SUFFIXES or (suffix in ENVI_SUFFIXES and any(header.is_file() for header in headers(path)))


def _plain(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
