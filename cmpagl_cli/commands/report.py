"""`cmpagl report`: a self-contained HTML page about one run, or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cmpagl_cli.commands.options import Settings, settings

if TYPE_CHECKING:
    from cmpagl_core.report.evidence import Evidence


def report(
    ctx: typer.Context,
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="Runs by name or path. Default: the newest.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="NAME|DIR", help="Prepared data set. Default: each run's own.")
    ] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option("--split", help="Split to report on.")] = "test",
    protocol: Annotated[
        Literal["rsitr", "duplicate-aware"],
        typer.Option(help="rsitr: only an image's own captions match; duplicate-aware: identical captions do too."),
    ] = "rsitr",
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Output HTML file.")] = Path("report.html"),
    again: Annotated[bool, typer.Option("--again", help="Evaluate again even if a saved evaluation exists.")] = False,
    mix: Annotated[bool, typer.Option("--mix", help="Show results of different data side by side anyway.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write one HTML page about a run, or several side by side.

    The page has recalls with intervals, re-ranking stages, results by scene, the worst queries with thumbnails,
    learning curves, recipe and stamp, and needs no other file. Saved evaluations are used; missing ones are run.

    Examples:
      cmpagl report
      cmpagl report ucm-cpu --out ucm.html --open
      cmpagl report ucm-cpu ucm-cpu-2 --split val
    """
    from cmpagl_core.files import write_text
    from cmpagl_core.report.runs_page import render_runs

    given = settings(ctx)
    names: list[str | None] = [*runs] if runs else [None]
    evidence = [_evidence(given, name, data, split, protocol, again) for name in names]
    write_text(out, render_runs(evidence, mix))
    given.progress.say(f"report: {out}")
    if open_page:
        import webbrowser

        webbrowser.open(out.absolute().as_uri())


def _evidence(
    given: Settings,
    name: str | None,
    data: str | None,
    split: str,
    protocol: Literal["rsitr", "duplicate-aware"],
    again: bool,
) -> Evidence:
    from cmpagl_core.report.evidence import collect
    from cmpagl_core.runs import open_run

    run = open_run(given.workspace.find("runs", name))
    return collect(given.session, run, data, split, protocol, again)
