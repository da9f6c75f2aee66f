"""Problems of a source: collected first, then reported all at once, or skipped and recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cmpagl_core.datasets.manifest import Dropped
from cmpagl_core.errors import DataError
from cmpagl_core.files import atomic_file
from cmpagl_core.sheets import write_sheet

PROBLEMS_FILE = "problems.csv"
_SHOWN = 20
_LONGEST_SHOWN = 120


ProblemKind = Literal["other count", "bad name", "duplicate", "bad caption", "missing", "ambiguous", "unreadable image"]


@dataclass(frozen=True)
class Problem:
    """A problem that stops a strict `prepare`."""

    kind: ProblemKind
    what: str
    why: str
    where: str = ""

    def dropped(self) -> Dropped:
        """Its record in the manifest."""
        return Dropped(what=plain(self.what), why=plain(self.why))


def plain(text: str) -> str:
    """Text that any file can store: invalid Unicode becomes an escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def fail(problems: Sequence[Problem], name: str, folder: Path) -> DataError:
    """Write all problems to `problems.csv` in `folder`; returns the error that shows the first 20."""
    path = folder / PROBLEMS_FILE
    with atomic_file(path) as stream:
        rows = ((one.kind, plain(one.what), plain(one.why), plain(one.where)) for one in problems)
        write_sheet(stream, ("kind", "what", "why", "where"), rows)
    shown = "".join(f"\n  {_line(one)}" for one in problems[:_SHOWN])
    rest = f"\n  and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    kinds = ", ".join(f"{kind}: {number:,}" for kind, number in Counter(one.kind for one in problems).items())
    return DataError(
        f"{name} has problems ({kinds}); fix them, or pass --skip-missing to leave out these entries; "
        f"all are listed in {path}, the first ones:{shown}{rest}"
    )


def _line(problem: Problem) -> str:
    return " ".join(plain(f"{problem.what[:_LONGEST_SHOWN]}: {problem.why}").split())
