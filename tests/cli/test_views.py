"""What people and programs read: every format says the same, safely."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from cmpagl_cli import views
from cmpagl_cli.views import Column, PlainProgress, RichProgress, clean, duration, emit, make_progress, shown
from cmpagl_core.progress import Silent

ROWS = [
    {"name": "a|b & 50%", "mr": 48.25678, "flag": True, "list": [1, 2], "hidden": 1},
    {"name": "[red]no markup[/red]", "mr": None, "flag": False, "list": [], "hidden": 2},
]
COLUMNS = [Column("name"), Column("mr", "mR", digits=1), Column("flag"), Column("list")]


def test_json_keeps_every_digit_and_only_the_named_columns(capsys: pytest.CaptureFixture[str]) -> None:
    emit(ROWS, COLUMNS, "json")
    rows = json.loads(capsys.readouterr().out)
    assert rows[0] == {"name": "a|b & 50%", "mr": 48.25678, "flag": True, "list": [1, 2]}


def test_json_writes_the_document_where_one_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    emit(ROWS, COLUMNS, "json", document={"rows": 2})
    assert json.loads(capsys.readouterr().out) == {"rows": 2}


def test_jsonl_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    emit(ROWS, COLUMNS, "jsonl")
    assert [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()] == [row["name"] for row in ROWS]


def test_csv_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    emit(ROWS, COLUMNS, "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == {"name": "a|b & 50%", "mr": "48.25678", "flag": "True", "list": "[1, 2]"}


def test_a_table_takes_text_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    emit(ROWS, COLUMNS, "table", title="[bold]title")
    out = capsys.readouterr().out
    assert "[red]no markup[/red]" in out
    assert "[bold]title" in out
    assert "48.3" in out


def test_markdown_and_latex_escape_their_own_signs(capsys: pytest.CaptureFixture[str]) -> None:
    emit(ROWS, COLUMNS, "markdown")
    assert "| a\\|b & 50% | 48.3 | yes | 1, 2 |" in capsys.readouterr().out
    emit(ROWS, COLUMNS, "latex")
    assert r"a|b \& 50\% & 48.3 & yes & 1, 2 \\" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["table", "json", "csv", "markdown", "latex", "jsonl"])
def test_no_format_breaks_on_hostile_text(format: views.OutputFormat, capsys: pytest.CaptureFixture[str]) -> None:
    emit([{"name": "\udcff\x1b[2J emoji \N{AIRPLANE} new\nline"}], ["name"], format)
    out = capsys.readouterr().out
    assert "\N{AIRPLANE}" in out
    assert "\x1b[2J" not in out


def test_shown_rounds_for_people() -> None:
    assert [shown(value) for value in (None, True, 1234567, 0.125, "x", (1, 2))] == [
        "", "yes", "1,234,567", "0.12", "x", "1, 2",
    ]  # fmt: skip


def test_clean_takes_away_what_commands_a_terminal() -> None:
    assert clean("a\x1b[2J\x9b\r\x07b") == "a\N{REPLACEMENT CHARACTER}[2J" + "\N{REPLACEMENT CHARACTER}" * 3 + "b"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")]
)
def test_duration_reads_as_people_say_it(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_bars_show_rate_and_messages_on_stderr() -> None:
    stream = io.StringIO()
    progress = RichProgress(Console(file=stream, force_terminal=True, width=100))
    with progress.task("encoding [x]", total=10, unit="img") as advance:
        progress.say("a [cost] is coming")
        for _ in range(10):
            advance(1)
        with progress.task("inner", total=1):
            pass
    assert "a [cost] is coming" in stream.getvalue()
    assert "encoding [x]" in stream.getvalue()


def test_a_log_gets_plain_lines_only_from_what_takes_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 20.0, 40.0, 0.0, 0.5])
    monkeypatch.setattr(views.time, "monotonic", lambda: next(clock))
    progress = PlainProgress()
    with progress.task("encoding", total=100, unit="img") as advance:
        advance(50)
    with progress.task("short", total=1):
        pass
    assert capsys.readouterr().err.splitlines() == [
        "encoding: 50 of 100, 2.5 img/s, about 20 s left",
        "encoding: 50 of 100, 1.2 img/s, 40 s",
    ]


def test_quiet_is_silent() -> None:
    assert isinstance(make_progress(quiet=True), Silent)
