"""Block-aligned parts of a scene, decoded once for all tiles that share them and kept while needed (ours).

A tile is often smaller than its block: a JPEG 2000 code block, or a strip as wide as the scene.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.imagery.image_ref import Window
from cmpagl_core.imagery.stretch import Rendering

_KEPT_BYTES, _MOST_KEPT_BYTES = 128 << 20, 512 << 20
_TILED_SIDE, _STRIP_ROWS = 1024, 256
_MAX_PIXELS = 1 << 24


@dataclass(frozen=True, eq=False)
class Chunk:
    """pixels: uint8 [H, W, 3]. valid: bool [H, W], None where all of them are."""

    pixels: NDArray[np.uint8]
    valid: NDArray[np.bool_] | None

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + (0 if self.valid is None else self.valid.nbytes)


Decode = Callable[[Window, Rendering], Chunk]
_Key = tuple[Rendering, int, int]


class Chunks:
    """The chunks of one scene. decode: reads one; called once at a time for each, in the thread that needs it first."""

    def __init__(self, width: int, height: int, block: tuple[int, int], decode: Decode) -> None:
        """block: width and height of the file's blocks."""
        self._width, self._height, self._block = width, height, block
        self._size = _chunk_size(width, height, block)
        self._decode = decode
        self._kept_bytes = _KEPT_BYTES
        self._lock = threading.Lock()
        self._known: OrderedDict[_Key, Future[Chunk]] = OrderedDict()

    def helps(self, window: Window) -> bool:
        """Whether tiles of this size share blocks even where they do not overlap."""
        return self._block[0] > window.width or self._block[1] > window.height

    def read(self, window: Window, rendering: Rendering) -> tuple[NDArray[np.uint8], int]:
        """A piece as uint8 [H, W, 3], and how many of its pixels are valid. Raises DataError as `decode` does."""
        self._kept_bytes = max(self._kept_bytes, min(_MOST_KEPT_BYTES, self._row_bytes(window)))
        pixels = np.empty((window.height, window.width, 3), dtype=np.uint8)
        valid = 0
        for part in self._parts(window):
            chunk = self._chunk((rendering, part.left, part.top), part)
            left, top = max(window.left, part.left), max(window.top, part.top)
            right = min(window.left + window.width, part.left + part.width)
            bottom = min(window.top + window.height, part.top + part.height)
            seen = (slice(top - part.top, bottom - part.top), slice(left - part.left, right - part.left))
            there = (slice(top - window.top, bottom - window.top), slice(left - window.left, right - window.left))
            pixels[there] = chunk.pixels[seen]
            count = (right - left) * (bottom - top)
            valid += count if chunk.valid is None else int(np.count_nonzero(chunk.valid[seen]))
        return pixels, valid

    def _row_bytes(self, window: Window) -> int:
        """What a row of tiles needs of strips, and two strips more for threads that are ahead."""
        across, down = self._size
        return (-(-window.height // down) + 2) * across * down * 3 if across == self._width else 0

    def _parts(self, window: Window) -> Iterator[Window]:
        across, down = self._size
        for top in range(window.top // down * down, window.top + window.height, down):
            for left in range(window.left // across * across, window.left + window.width, across):
                yield Window(left, top, min(across, self._width - left), min(down, self._height - top))

    def _chunk(self, key: _Key, part: Window) -> Chunk:
        with self._lock:
            future = self._known.get(key)
            is_mine = future is None
            if future is None:
                future = self._known[key] = Future()
            self._known.move_to_end(key)
        if not is_mine:
            return future.result()
        try:
            chunk = self._decode(part, key[0])
        except BaseException as error:
            with self._lock:
                self._known.pop(key, None)
            future.set_exception(error)
            raise
        future.set_result(chunk)
        self._forget_surplus()
        return chunk

    def _forget_surplus(self) -> None:
        with self._lock:
            done = [(key, future.result().nbytes) for key, future in self._known.items() if future.done()]
            surplus = sum(size for _, size in done) - self._kept_bytes
            for key, size in done[:-1]:
                if surplus <= 0:
                    return
                surplus -= size
                del self._known[key]


def _chunk_size(width: int, height: int, block: tuple[int, int]) -> tuple[int, int]:
    """Whole blocks: of a tiled file about a thousand pixels a side, of strips some hundred rows."""
    if block[0] >= width:
        rows = max(1, min(_STRIP_ROWS, _MAX_PIXELS // width) // block[1]) * block[1]
        return width, min(rows, height)
    across, down = (max(1, _TILED_SIDE // side) * side for side in block)
    return min(across, width), min(down, height)
