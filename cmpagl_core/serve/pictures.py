"""Thumbnails and views of the images of an index and of nothing else, decoded and encoded anew, never a file's bytes.

A file is shown as long as it is the one that was indexed. A link that was put in its place is another file.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from pathlib import Path

from PIL import Image

from cmpagl_core.errors import DataError
from cmpagl_core.files import FileStamp
from cmpagl_core.imagery.image_ref import ImageRef, Window
from cmpagl_core.imagery.reader import open_ref
from cmpagl_core.imagery.scene_pool import SCENES
from cmpagl_core.imagery.stamps import cannot_read, file_state, stamp_file
from cmpagl_core.search.index import GalleryIndex

_JPEG_QUALITY = 84
_KEPT_BYTES = 64 << 20
_AT_ONCE = 2  # images decoded, whoever asks


class Pictures:
    """JPEGs of the images of an index, the last ones kept."""

    def __init__(self, gallery: GalleryIndex) -> None:
        self._gallery = gallery
        self._stamps = [] if gallery.stamps is None else list(gallery.stamps)
        self._same: dict[Path, tuple[int, int]] = {}  # files whose content was compared, and their state then
        self._kept: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()
        self._bytes = 0
        self._lock, self._decoding = threading.Lock(), threading.Semaphore(_AT_ONCE)

    def jpeg(self, row: int, size_px: int, around: int = 1) -> bytes:
        """An image, at most size_px a side. around: how many times as much of its scene is seen; 0: all of it.

        Raises DataError where it is missing, broken, or not the file that was indexed.
        """
        key = (row, size_px, around)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self._decoding:
            content = _encoded(self.pixels(row, size_px, around))
        with self._lock:
            self._bytes += len(content) - len(self._kept.get(key, b""))
            self._kept[key] = content
            while self._bytes > _KEPT_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return content

    def pixels(self, row: int, size_px: int | None = None, around: int = 1) -> Image.Image:
        """The image itself, at its full size without size_px. Raises as `jpeg` does."""
        image = self._gallery.image(row)
        before = self._checked(row, image.path)
        if around == 1 or image.window is None or image.scene is None:
            pixels = open_ref(image, None if size_px is None else 2 * size_px)
        else:
            window = view_of(image, around)
            with SCENES.opened(image.path, image.reading) as scene:
                shown = None if size_px is None else _shortest(window, size_px)
                pixels = scene.read(window, image.scene.rendering, image.reading, shown).pixels
        if _state(image.path) != before:
            raise DataError(f"{image.path} changed while it was being read", hint="try again")
        if size_px is not None:
            pixels.thumbnail((size_px, size_px), Image.Resampling.LANCZOS)
        return pixels

    def _checked(self, row: int, path: Path) -> tuple[int, int]:
        """The state of a file that is the one that was indexed. Raises DataError where it is not."""
        state = _state(path)
        if not self._stamps:
            if path.is_symlink():
                raise DataError(f"{path} is a link, and nothing says where it led", hint="index its folder")
            return state
        stamp = self._stamps[row]
        if state != (stamp.size, stamp.mtime_ns) and self._same.get(path) != state:
            self._compare(path, stamp, state)
        return state

    def _compare(self, path: Path, stamp: FileStamp, state: tuple[int, int]) -> None:
        """By content, where only the time differs."""
        if state[0] != stamp.size or stamp_file(path).sha256 != stamp.sha256:
            raise DataError(f"{path} is not the file that was indexed", hint="update the index with `cmpagl index`")
        self._same[path] = state


def view_of(image: ImageRef, around: int) -> Window:
    """The part of a tile's scene that is `around` times as wide and high, as far as there is so much; 0: all of it."""
    assert image.window is not None
    assert image.scene is not None
    window, scene = image.window, image.scene
    if around == 0:
        return Window(0, 0, scene.width, scene.height)
    width, height = min(around * window.width, scene.width), min(around * window.height, scene.height)
    left = min(max(0, window.left + (window.width - width) // 2), scene.width - width)
    top = min(max(0, window.top + (window.height - height) // 2), scene.height - height)
    return Window(left, top, width, height)


def _shortest(window: Window, size_px: int) -> int:
    """Pixels of the shorter side when the longer one has size_px."""
    longest = max(window.width, window.height)
    return max(1, size_px * min(window.width, window.height) // longest)


def _state(path: Path) -> tuple[int, int]:
    try:
        return file_state(path)
    except FileNotFoundError as error:
        raise DataError(f"image {path} does not exist", hint="update the index with `cmpagl index`") from error
    except OSError as error:
        raise cannot_read(path, error) from error


def _encoded(pixels: Image.Image) -> bytes:
    stream = io.BytesIO()
    pixels.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()
