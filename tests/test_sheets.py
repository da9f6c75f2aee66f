"""CSV that people open: nothing in it is a formula or commands a terminal, and the rest is as it was."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmpagl_core.sheets import sheet_text, write_sheet


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_starts_a_formula(start: str) -> None:
    assert sheet_text(f"{start}cmd|' /C calc'!A0").startswith("'")


@given(st.text())
def test_what_is_written_is_read_back_but_for_what_commands(text: str) -> None:
    stream = io.StringIO(newline="")
    write_sheet(stream, ["a", "b"], [(text, -0.5)])
    stream.seek(0)
    rows = list(csv.reader(stream))
    assert rows[1][1] == "-0.5"
    assert [sign for sign in rows[1][0] if (sign < " " and sign not in "\n\t") or "\x7f" <= sign <= "\x9f"] == []
    if text.isprintable() and not text.startswith(("=", "+", "-", "@")):
        assert rows[1][0] == text


def test_lists_are_json() -> None:
    stream = io.StringIO()
    write_sheet(stream, ["a"], [(["=1", "\x1b"],)])
    assert stream.getvalue() == 'a\n"[""=1"", ""\\u001b""]"\n'
