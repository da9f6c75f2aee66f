"""CSV for people: no cell is a formula to a spreadsheet or a command to a terminal (ours)."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from typing import IO, Any

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_STARTS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_sheet(stream: IO[str], head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a head and rows. Lists and mappings are JSON; texts are as `sheet_text` has them."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_cell(value) for value in row] for row in rows)


def sheet_text(text: str) -> str:
    """A text with an apostrophe before what would start a formula, and without control characters."""
    safe = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return f"'{safe}" if text.startswith(_STARTS_A_FORMULA) else safe


def _cell(value: Any) -> Any:
    if isinstance(value, list | tuple | dict):
        return sheet_text(json.dumps(value, ensure_ascii=False))
    return sheet_text(value) if isinstance(value, str) else value
