"""`cmpagl tune`: choose what re-rankings need, never on the test split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cmpagl_cli.commands.options import FormatOption, RunOption, settings
from cmpagl_cli.views import Column, emit


def tune_smr(
    ctx: typer.Context,
    run: RunOption = None,
    split: Annotated[str, typer.Option(help="selection (what the run chose on), val or train; never test.")] = (
        "selection"
    ),
    form: Annotated[
        Literal["multiply", "add"] | None, typer.Option(help="SMR's form; the recipe's if left out.")
    ] = None,
    gammas: Annotated[
        str | None, typer.Option(metavar="LIST", help="Grid of both gammas, as in 0,0.5,1; the recipe's if left out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PNG", help="Heat map; smr-SPLIT.png in the run if left out.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Keep the choice in the run.")] = True,
    format: FormatOption = "table",
) -> None:
    """Try a grid of SMR's gammas, draw it, and keep the best in the run for `cmpagl evaluate`.

    Refuses the test split (exit 4). Also chooses the temperature of dual softmax.

    Examples:
      cmpagl tune smr
      cmpagl tune smr --run ucm-cpu --form add --no-keep
      cmpagl tune smr --gammas 0,1,2,4,8 --out grid.png --format csv
    """
    from dataclasses import asdict

    from cmpagl_core.evaluation.heatmap import save_heatmap
    from cmpagl_core.evaluation.protocol import require_not_test
    from cmpagl_core.evaluation.selection import choose_for_run, keep_choice, open_tested
    from cmpagl_core.runs import open_run

    given = settings(ctx)
    require_not_test(split, "SMR's gammas")
    grid = None if gammas is None else _numbers(gammas)
    opened = open_run(given.workspace.find("runs", run))
    tested = open_tested(given.workspace, opened, None, split)
    loaded = opened.load(given.compute_device())
    choice, tuned = choose_for_run(opened, loaded, tested.split, given.progress, form, grid)
    if keep:
        keep_choice(opened, choice, tuned)
    rows = [{**asdict(point), "gain": point.mr - choice.plain_mr} for point in choice.grid]
    document = {
        **asdict(choice),
        "dual_softmax": tuned.dual_softmax,
        "split": split,
        "run": opened.root.name,
        "kept": keep,
    }
    title = f"SMR {choice.form} on {split} of {opened.info.dataset}: mR {choice.plain_mr:.2f} without"
    emit(rows, [Column("gamma1"), Column("gamma2"), Column("mr", "mR"), Column("gain")], format, title, document)
    kept = f"; kept in {opened.root}" if keep else ""
    given.progress.say(f"best: gamma1 {choice.gamma1:g}, gamma2 {choice.gamma2:g}, mR {choice.mr:.2f}{kept}")
    picture = out or opened.root / f"smr-{split}.png"
    if out is not None or _can_draw():
        save_heatmap(choice, f"{opened.root.name} on {split}", picture)
        given.progress.say(f"heat map: {picture}")
    else:
        given.progress.say("no heat map without matplotlib: pip install 'cmpagl[plots]'")


def _can_draw() -> bool:
    import importlib.util

    return importlib.util.find_spec("matplotlib") is not None


def _numbers(text: str) -> list[float]:
    from cmpagl_core.errors import UsageError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--gammas {text!r} is not a list of numbers", hint="write for instance 0,0.5,1") from error
