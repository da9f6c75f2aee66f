"""`cmpagl tune`: choose what re-rankings need, never on the test split."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from cmpagl_cli.commands.options import FormatOption, RunOption, Settings, settings
from cmpagl_cli.views import Column, emit

COLUMNS = [Column("gamma1"), Column("gamma2"), Column("mr", "mR"), Column("gain")]

SplitOption = Annotated[
    str, typer.Option("--split", help="selection (what the run chose on), val or train; never test.")
]
FormOption = Annotated[
    Literal["multiply", "add"] | None, typer.Option("--form", help="SMR's form; the recipe's if left out.")
]
GammasOption = Annotated[
    str | None,
    typer.Option("--gammas", metavar="LIST", help="Grid of both gammas, as in 0,0.5,1; the recipe's if left out."),
]
PictureOption = Annotated[
    Path | None, typer.Option("--out", metavar="PNG", help="Heat map; smr-SPLIT.png in the run if left out.")
]
KeepOption = Annotated[bool, typer.Option("--keep/--no-keep", help="Keep the choice in the run.")]


def tune_smr(
    ctx: typer.Context,
    run: RunOption = None,
    split: SplitOption = "selection",
    form: FormOption = None,
    gammas: GammasOption = None,
    out: PictureOption = None,
    keep: KeepOption = True,
    format: FormatOption = "table",
) -> None:
    """Try a grid of SMR's gammas, draw it, and keep the best in the run for `cmpagl evaluate`.

    Refuses the test split (exit 4). Also chooses the temperature of dual softmax.

    Examples:
      cmpagl tune smr
      cmpagl tune smr --run ucm-cpu --form add --no-keep
      cmpagl tune smr --gammas 0,1,2,4,8 --out grid.png --format csv
    """
    from cmpagl_core.evaluation.selection import tune_run
    from cmpagl_core.runs import open_run

    given = settings(ctx)
    grid = None if gammas is None else _numbers(gammas)
    opened = open_run(given.workspace.find("runs", run))
    choice, tuned = tune_run(given.workspace, opened, split, given.progress, given.compute_device(), form, grid, keep)
    name = opened.root.name
    rows = [{**asdict(point), "gain": point.mr - choice.plain_mr} for point in choice.grid]
    document = {"run": name, "split": split, "kept": keep, **asdict(choice), "dual_softmax": tuned.dual_softmax}
    title = f"SMR {choice.form}, {name} on {split} of {opened.info.dataset}: mR {choice.plain_mr:.2f} without"
    emit(rows, COLUMNS, format, title, document)
    kept = f"; kept in {opened.root}" if keep else ""
    given.progress.say(f"best: gamma1 {choice.gamma1:g}, gamma2 {choice.gamma2:g}, mR {choice.mr:.2f}{kept}")
    if out is not None or _can_draw(given):
        from cmpagl_core.evaluation.heatmap import save_heatmap

        picture = out or opened.root / f"smr-{split}.png"
        save_heatmap(choice, f"{name} on {split}", picture)
        given.progress.say(f"heat map: {picture}")


def _can_draw(given: Settings) -> bool:
    import importlib.util

    if importlib.util.find_spec("matplotlib") is not None:
        return True
    given.progress.say("no heat map without matplotlib: pip install 'cmpagl[plots]'")
    return False


def _numbers(text: str) -> list[float]:
    from cmpagl_core.errors import UsageError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--gammas {text!r} is not a list of numbers", hint="write for instance 0,0.5,1") from error
