"""How long work tells its caller how far it is, without knowing about screens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Given to anything that may take over a second."""

    def task(self, description: str, total: int, unit: str = "") -> AbstractContextManager[Advance]:
        """Open one bar; call what it yields with the number of units just done."""

    def say(self, message: str) -> None:
        """Tell the user one line (a warning, a cost that is coming)."""


class Silent:
    """A Progress that shows nothing."""

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Advance]:
        yield lambda done: None

    def say(self, message: str) -> None:
        return None
