"""Progress reporting of long-running work, independent of the display."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Passed to anything that may take more than a second."""

    def task(self, description: str, total: int, unit: str = "") -> AbstractContextManager[Advance]:
        """Open a progress bar; call the yielded function with the number of units just done."""

    def say(self, message: str) -> None:
        """Show the user one line (a warning, an expected cost)."""


class Silent:
    """A Progress that shows nothing."""

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Advance]:
        yield lambda done: None

    def say(self, message: str) -> None:
        return None
