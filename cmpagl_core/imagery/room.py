"""Bounds the memory of all images being decoded, whatever the number of threads."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TRIMMED_BYTES = 256 << 20


class DecodingRoom:
    """Bytes that are shared by all threads. An image that needs more than all of them is decoded alone."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._taken = 0
        self._changed = threading.Condition()
        self._own = threading.local()

    @contextmanager
    def held(self) -> Iterator[None]:
        """What this thread takes inside the block is given back at its end, when no image is left of it."""
        if self._is_inside():
            yield
            return
        self._own.taken = 0
        try:
            yield
        finally:
            if self._own.taken >= _TRIMMED_BYTES:
                _return_freed_memory()
            self._give_back()
            self._own.taken = None

    def take(self, size: int) -> None:
        """Wait until so many bytes are free. What the thread has taken before in its block is given back first."""
        if not self._is_inside():
            raise RuntimeError("an image is decoded outside of DecodingRoom.held")
        size = min(max(size, self._own.taken), self._total)
        self._give_back()
        with self._changed:
            self._changed.wait_for(lambda: self._taken + size <= self._total)
            self._taken += size
            self._own.taken = size

    def _is_inside(self) -> bool:
        return getattr(self._own, "taken", None) is not None

    def _give_back(self) -> None:
        with self._changed:
            self._taken -= self._own.taken
            self._own.taken = 0
            self._changed.notify_all()


def _return_freed_memory() -> None:
    """glibc keeps what a thread has freed for that thread: half a gigabyte each, after one large image."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


DECODING = DecodingRoom(1 << 30)
"""Of this process, since its memory is one too."""
