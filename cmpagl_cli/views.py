"""All output: tables and machine formats on stdout, progress bars and messages on stderr."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from cmpagl_cli.commands.options import OutputFormat
from cmpagl_cli.entry import silence
from cmpagl_core.errors import CmpaglError
from cmpagl_core.progress import Advance, Progress, Silent
from cmpagl_core.sheets import write_sheet

if TYPE_CHECKING:
    import rich.console
    import rich.progress

_PLAIN_LINE_EVERY_S = 15.0
_WORTH_A_LINE_S = 1.0
_PIPE_WIDTH = 240
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column: the row's key, its heading, the decimals of numbers in tables for people, and the key of its link."""

    key: str
    head: str = ""
    digits: int = 2
    link: str = ""

    @property
    def title(self) -> str:
        return self.head or self.key


def emit(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Column | str],
    format: OutputFormat = "table",
    title: str = "",
    document: Any = None,
) -> None:
    """Write rows to stdout. `json` writes `document` if one is given; machine formats keep all digits."""
    chosen = [Column(column) if isinstance(column, str) else column for column in columns]
    echo(render(rows, chosen, format, document, title))


def render(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Column],
    format: OutputFormat,
    document: Any = None,
    title: str = "",
) -> str:
    """Rows as text in one of the formats, without a trailing newline."""
    if format == "table":
        return _table(rows, columns, title)
    if format == "json":
        content = document if document is not None else [_picked(row, columns) for row in rows]
        return json.dumps(content, indent=2, ensure_ascii=not _says("é\u4e2d"), allow_nan=False)
    if format == "jsonl":
        ascii_alone = not _says("é\u4e2d")
        return "\n".join(json.dumps(_picked(row, columns), ensure_ascii=ascii_alone, allow_nan=False) for row in rows)
    if format == "csv":
        return _csv(rows, columns)
    cells = [[shown(row.get(column.key), column.digits) for column in columns] for row in rows]
    heads = [column.title for column in columns]
    return _markdown(heads, cells) if format == "markdown" else _latex(heads, cells)


def echo(text: str) -> None:
    """Write text to stdout unchanged, except that characters outside UTF-8 become escapes.

    Raises CmpaglError if it cannot be written, BrokenPipeError if the reader is gone.
    """
    try:
        typer.echo(text.encode("utf-8", "backslashreplace").decode("utf-8"))
    except BrokenPipeError:
        raise
    except OSError as error:
        silence(sys.stdout)
        raise CmpaglError(
            f"the result cannot be written to stdout ({error.strerror or error})", hint="write it where there is space"
        ) from error


def note(text: str) -> None:
    """Write one line to stderr, ignoring failures."""
    try:
        typer.echo(clean(text), err=True)
    except OSError:
        silence(sys.stderr)


def clean(text: str) -> str:
    """Text without control characters, with which a caption or file name could control the terminal."""
    safe = "".join(sign if sign.isprintable() or sign in "\n\t" else "\N{REPLACEMENT CHARACTER}" for sign in text)
    return safe.encode("utf-8", "replace").decode("utf-8")


def shown(value: Any, digits: int = 2) -> str:
    """A value for people: numbers rounded, lists joined, None empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(shown(item, digits) for item in value)
    return clean(str(value))


def make_progress(quiet: bool) -> Progress:
    """Progress bars on a terminal, plain lines elsewhere, nothing if quiet."""
    if quiet:
        return Silent()
    return RichProgress() if sys.stderr.isatty() else PlainProgress()


class RichProgress:
    """Progress bars on stderr with rate and time left; nested tasks share one display."""

    def __init__(self, console: rich.console.Console | None = None) -> None:
        self._console = console
        self._display: rich.progress.Progress | None = None
        self._open = 0

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Advance]:
        display = self._started()
        started_at = time.monotonic()
        task = display.add_task(clean(description), total=total, rate="")
        done_so_far = 0

        def advance(done: int) -> None:
            nonlocal done_so_far
            done_so_far += done
            rate = _rate(done_so_far, time.monotonic() - started_at, unit)
            display.update(task, advance=done, rate=rate)

        try:
            yield advance
        finally:
            display.remove_task(task)
            self._stopped()

    def say(self, message: str) -> None:
        if self._display is None:
            note(message)
        else:
            self._display.console.print(clean(message), markup=False, highlight=False, soft_wrap=True)

    def _started(self) -> rich.progress.Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._display is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeRemainingColumn(compact=True),
            )
            self._display = Progress(*columns, console=self._console or Console(stderr=True), transient=True)
            self._display.start()
        self._open += 1
        return self._display

    def _stopped(self) -> None:
        self._open -= 1
        if self._open == 0 and self._display is not None:
            self._display.stop()
            self._display = None


class PlainProgress:
    """Occasional lines, for logs and pipes; a task that ends within a second prints nothing."""

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Advance]:
        started_at = said_at = time.monotonic()
        done_so_far = 0

        def advance(done: int) -> None:
            nonlocal done_so_far, said_at
            done_so_far += done
            now = time.monotonic()
            if now - said_at >= _PLAIN_LINE_EVERY_S and done_so_far < total:
                said_at = now
                left_s = (now - started_at) * (total - done_so_far) / max(done_so_far, 1)
                note(f"{line(now)}, about {duration(left_s)} left")

        def line(now: float) -> str:
            rate = _rate(done_so_far, now - started_at, unit)
            return f"{description}: {done_so_far:,} of {total:,}{', ' + rate if rate else ''}"

        yield advance
        now = time.monotonic()
        if now - started_at >= _WORTH_A_LINE_S:
            note(f"{line(now)}, {duration(now - started_at)}")

    def say(self, message: str) -> None:
        note(message)


def duration(elapsed_s: float) -> str:
    """A duration for people: 8 s, 3 min 20 s, 1 h 05 min."""
    seconds = round(elapsed_s)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _rate(done: int, elapsed_s: float, unit: str) -> str:
    if elapsed_s <= 0 or not done:
        return ""
    return f"{done / elapsed_s:,.1f} {unit}/s" if unit else f"{done / elapsed_s:,.1f}/s"


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], title: str) -> str:
    """As wide as the terminal, or as wide as needed without one."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    on_terminal = sys.stdout.isatty()
    width = None if on_terminal else _PIPE_WIDTH
    console = Console(file=io.StringIO(), width=width, force_terminal=on_terminal)
    lines = box.SIMPLE_HEAD if _says("\u2500") else box.ASCII
    table = Table(box=lines, title=Text(clean(title)) if title else None, title_justify="left")
    for column in columns:
        numbers = any(isinstance(row.get(column.key), int | float) for row in rows)
        table.add_column(Text(column.title), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row, column) for column in columns))
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _cell(row: Mapping[str, Any], column: Column) -> Any:
    """A cell of a table: text, linked where the terminal can (OSC 8), or something that rich draws by itself."""
    from rich.style import Style
    from rich.text import Text

    value = row.get(column.key)
    if hasattr(value, "__rich_console__"):
        return value
    link = Style(link=row.get(column.link)) if column.link else ""
    return Text(shown(value, column.digits), style=link)


def _says(text: str) -> bool:
    """Whether stdout's encoding can represent these characters."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _picked(row: Mapping[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    return {column.key: row.get(column.key) for column in columns}


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    stream = io.StringIO()
    write_sheet(stream, [column.key for column in columns], ([row.get(one.key) for one in columns] for row in rows))
    return stream.getvalue().rstrip("\n")


def _markdown(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    def row(values: Sequence[str]) -> str:
        safe = (value.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") for value in values)
        return "| " + " | ".join(" ".join(value.split()) for value in safe) + " |"

    return "\n".join([row(heads), "|" + "---|" * len(heads), *(row(values) for values in cells)])


def _latex(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    def row(values: Sequence[str]) -> str:
        safe = ("".join(_LATEX.get(sign, sign) for sign in " ".join(value.split())) for value in values)
        return " & ".join(safe) + r" \\"

    body = [r"\hline", row(heads), r"\hline", *(row(values) for values in cells), r"\hline"]
    return "\n".join([rf"\begin{{tabular}}{{{'l' * len(heads)}}}", *body, r"\end{tabular}"])
