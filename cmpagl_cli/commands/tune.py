"""`cmpagl tune`: choose the parameters of re-rankings, never on the test split."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmpagl_cli.commands.options import FormatOption, OutputFormat, RunOption, Settings, settings
from cmpagl_cli.views import Column, emit

if TYPE_CHECKING:
    from cmpagl_core.evaluation.sensitivity import Sensitivity

COLUMNS = [Column("gamma1"), Column("gamma2"), Column("mr", "mR"), Column("gain")]

SENSITIVITY_COLUMNS = [
    Column("reranking", "re-ranking"),
    Column("gamma1"),
    Column("gamma2"),
    Column("temperature", "T"),
    Column("mr", "mR"),
    Column("gain"),
    Column("low", "from"),
    Column("high", "to (95 %)"),
    Column("best_share", "best in"),
]

SplitOption = Annotated[
    str,
    typer.Option(
        "--split", help="selection (the split on which the run was chosen), or val; never test or training data."
    ),
]
BaseOption = Annotated[
    Literal["cosine", "balanced", "itm"] | None,
    typer.Option("--base", help="Scores to re-rank: cosine, balanced or itm. Default: the plain ranking's."),
]
FormOption = Annotated[
    Literal["multiply", "add"] | None, typer.Option("--form", help="SMR's form. Default: the recipe's.")
]
GammasOption = Annotated[
    str | None,
    typer.Option("--gammas", metavar="LIST", help="Grid for both gammas, as in 0,0.5,1. Default: the recipe's."),
]
ImageOption = Annotated[
    Path | None, typer.Option("--out", metavar="PNG", help="Heat map file. Default: smr-SPLIT.png in the run.")
]
KeepOption = Annotated[bool, typer.Option("--keep/--no-keep", help="Save the choice in the run.")]


def tune_smr(
    ctx: typer.Context,
    run: RunOption = None,
    split: SplitOption = "selection",
    base: BaseOption = None,
    form: FormOption = None,
    gammas: GammasOption = None,
    out: ImageOption = None,
    keep: KeepOption = True,
    format: FormatOption = "table",
) -> None:
    """Search a grid of SMR's gammas, plot it, and save the best in the run (rerank.json) for `cmpagl evaluate`.

    Also chooses the temperatures of dual softmax and Sinkhorn. Refuses the test split and training data (exit code 4).

    Examples:
      cmpagl tune smr
      cmpagl tune smr --base itm
      cmpagl tune smr --run ucm-cpu --form add --no-keep
      cmpagl tune smr --gammas 0,1,2,4,8 --out grid.png --format csv
    """
    from cmpagl_core.evaluation.choosing import TuneRequest, tune_run
    from cmpagl_core.runs import open_run

    given = settings(ctx)
    request = TuneRequest(split, base, form, None if gammas is None else _numbers(gammas), keep)
    opened = open_run(given.workspace.find("runs", run))
    choice, params = tune_run(given.session, opened, request)
    name = opened.root.name
    rows = [{**asdict(point), "gain": point.mr - choice.plain_mr} for point in choice.grid]
    temperatures = {"dual_softmax": params.dual_softmax, "sinkhorn": params.sinkhorn}
    document = {"run": name, "split": split, "kept": keep, **asdict(choice), **temperatures}
    title = f"SMR {choice.form}, {name} on {split} of {opened.info.dataset}: mR {choice.plain_mr:.2f} without"
    emit(rows, COLUMNS, format, title, document)
    kept = f"; saved in {opened.root}" if keep else ""
    given.progress.say(f"best: gamma1 {choice.gamma1:g}, gamma2 {choice.gamma2:g}, mR {choice.mr:.2f}{kept}")
    if out is not None or _can_draw(given):
        from cmpagl_core.evaluation.heatmap import save_heatmap

        image = out or opened.root / f"smr-{split}.png"
        save_heatmap(choice, f"{name} on {split}", image)
        given.progress.say(f"heat map: {image}")


def tune_sensitivity(
    ctx: typer.Context,
    run: RunOption = None,
    split: SplitOption = "selection",
    gammas: GammasOption = None,
    samples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of the intervals.")] = 1000,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PNG", help="Figure file. Default: sensitivity-SPLIT.png in the run."),
    ] = None,
    format: FormatOption = "table",
) -> None:
    """Measure how much SMR's gammas matter: the whole grid in both forms, beside every other re-ranking.

    Gains are relative to no re-ranking, with 95 % intervals over query images; nothing is saved. Tables show each
    form's best and worst pair; csv, json and the figure have every pair. Refuses the test split (exit code 4).

    Examples:
      cmpagl tune sensitivity
      cmpagl tune sensitivity --run rsicd-cpu --split val --format json
      cmpagl tune sensitivity --gammas 0,0.5,1,2,4,8 --out sensitivity.png --format csv
    """
    from cmpagl_core.evaluation.choosing import TuneRequest, sensitivity_of_run
    from cmpagl_core.runs import open_run

    given = settings(ctx)
    request = TuneRequest(split, gammas=None if gammas is None else _numbers(gammas), samples=samples)
    opened = open_run(given.workspace.find("runs", run))
    found, tested = sensitivity_of_run(given.session, opened, request)
    name = opened.root.name
    document = {
        "run": name,
        "dataset": tested.dataset,
        "split": tested.name,
        "split_sha256": tested.sha256,
        "model_sha256": opened.info.weights_sha256,
        **found.to_json(),
    }
    title = f"{name} on {tested.name} of {tested.dataset}, mR {found.plain_mr:.2f} without re-ranking"
    emit(_sensitivity_rows(found, format), SENSITIVITY_COLUMNS, format, title, document)
    if out is not None or _can_draw(given):
        from cmpagl_core.evaluation.heatmap import save_sensitivity

        image = out or opened.root / f"sensitivity-{split}.png"
        save_sensitivity(found, f"{name} on {tested.name} of {tested.dataset}", image)
        given.progress.say(f"figure: {image}")


def _sensitivity_rows(found: Sensitivity, format: OutputFormat) -> list[dict[str, Any]]:
    from cmpagl_core.evaluation.sensitivity import FORMS

    shown = list(found.settings)
    if format in ("table", "markdown", "latex"):
        summaries = [found.summary(form) for form in FORMS]
        shown = [setting for one in summaries for setting in (one.best, one.worst)] + list(found.others)
    return [{**asdict(one), "low": one.gain_ci95[0], "high": one.gain_ci95[1]} for one in shown]


def _can_draw(given: Settings) -> bool:
    import importlib.util

    if importlib.util.find_spec("matplotlib") is not None:
        return True
    given.progress.say("no figure without matplotlib: pip install 'cmpagl[plots]'")
    return False


def _numbers(text: str) -> tuple[float, ...]:
    from cmpagl_core.errors import UsageError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--gammas {text!r} is not a list of numbers", hint="write for instance 0,0.5,1") from error
