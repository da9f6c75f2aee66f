"""Handles SIGINT, SIGTERM and SIGHUP alike, and defers them while a block must be finished.

Each becomes a KeyboardInterrupt in the main thread, so that cleanup after Ctrl-C also happens after SIGTERM and SIGHUP.
A signal that is ignored at the start (nohup, a shell's background job) stays ignored.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_SAME_WISH_S = 1.0  # a service manager sends SIGTERM and SIGHUP together, and people press Ctrl-C twice


class Interruption:
    """The process's handler of these signals, once `listen` or `caught` has installed it."""

    def __init__(self) -> None:
        self._shields = 0
        self._waiting = False
        self._asked_at: float | None = None

    @classmethod
    def current(cls) -> Interruption:
        """The installed handler, else a new one that is not installed."""
        for number in _SIGNALS:
            owner = getattr(signal.getsignal(number), "__self__", None)
            if isinstance(owner, cls):
                return owner
        return cls()

    @property
    def asked(self) -> bool:
        """Whether a signal has arrived; a library may have turned the KeyboardInterrupt into another exception."""
        return self._asked_at is not None

    def listen(self) -> None:
        """Handle the signals from now on; call it in the main thread."""
        for number in _SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                signal.signal(number, self._signalled)

    def leave(self) -> None:
        """Restore the default handlers, which end the process; nothing is left to clean up."""
        for number in _SIGNALS:
            if signal.getsignal(number) == self._signalled:
                signal.signal(number, signal.SIG_DFL)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Handle the signals inside the block; no effect if already handled, or in another thread."""
        if threading.current_thread() is not threading.main_thread() or Interruption.current() is self:
            yield
            return
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.listen()
        try:
            yield
        finally:
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Defer an interruption until the end of the block."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        if self._waiting and not self._shields:
            self._waiting = False
            raise KeyboardInterrupt

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is not None and now - self._asked_at < _SAME_WISH_S:
            return
        self._asked_at = now
        if not self._shields:
            raise KeyboardInterrupt
        self._waiting = True
