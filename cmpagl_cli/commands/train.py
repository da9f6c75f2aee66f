"""`cmpagl train`: train a recipe on a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cmpagl_cli.commands.options import DataOption, FormatOption, NameOption, SeedOption, SetOption, settings
from cmpagl_cli.views import Column, duration, emit

if TYPE_CHECKING:
    from cmpagl_cli.commands.options import OutputFormat
    from cmpagl_core.ranking.rerank import Gammas
    from cmpagl_core.runs import Run
    from cmpagl_core.training.forecast import TrainingForecast

RecipeArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        help="Recipe file, or name of a shipped recipe; optional with --resume.",
        show_default=False,
    ),
]


def train(
    ctx: typer.Context,
    recipe: RecipeArgument = None,
    data: DataOption = None,
    name: NameOption = None,
    seed: SeedOption = None,
    overrides: SetOption = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume the newest unfinished training (of RECIPE, or called NAME)."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Do not train; estimate parameters, memory, steps and time from a few measured steps."
        ),
    ] = False,
    format: FormatOption = "table",
) -> None:
    """Train a recipe on a prepared data set and save the run in runs/NAME.

    The weights with the best validation mR are saved, with SMR's gammas chosen for them. A training stopped by Ctrl-C
    or otherwise continues with --resume and ends with identical weights.

    Examples:
      cmpagl train ucm-cpu
      cmpagl train ucm-cpu --seed 1 --name ucm-seed1
      cmpagl train my.yaml --data rsicd --set optim.lr=1.0e-4 --set train.epochs=20
      cmpagl train rsicd --dry-run
      cmpagl train --resume
    """
    from cmpagl_core.training.start import TrainRequest, start_training

    given = settings(ctx)
    request = TrainRequest(recipe, data, name, seed, tuple(overrides or ()), resume)
    device = given.compute_device()
    if dry_run:
        from cmpagl_core.training.forecast import forecast

        _show_forecast(forecast(request, given.workspace, given.progress, device), format)
        return
    _show_run(start_training(request, given.workspace, given.progress, device), format)


def _show_run(run: Run, format: OutputFormat) -> None:
    info, (smr, smr_mr) = run.info, _smr(run)
    row = {
        "run": run.root.name,
        "path": str(run.root),
        "dataset": info.dataset,
        "seed": info.seed,
        "best_epoch": info.best.epoch,
        "epochs": info.epochs,
        "mr": info.best.mr,
        "smr": None if smr is None else {"form": smr.form, "gamma1": smr.gamma1, "gamma2": smr.gamma2, "mr": smr_mr},
        "elapsed_s": info.elapsed_s,
        "weights_sha256": info.weights_sha256,
    }
    shown = row | {
        "smr": "" if smr is None else f"{smr.form}, gamma {smr.gamma1:g} and {smr.gamma2:g}",
        "smr_mr": smr_mr,
        "time": duration(info.elapsed_s),
    }
    columns = [
        Column("run"),
        Column("dataset"),
        Column("seed"),
        Column("best_epoch", "best epoch"),
        Column("epochs"),
        Column("mr", "validation mR"),
        Column("smr_mr", "with SMR"),
        Column("smr", "SMR"),
        Column("time"),
    ]
    emit([shown], columns, format, title=f"trained into {run.root}", document=row)


def _smr(run: Run) -> tuple[Gammas | None, float | None]:
    """The gammas chosen in training, and mR with them on the selection split."""
    from cmpagl_core.ranking.kept_params import read_params

    chosen = next(iter(read_params(run).by_scores.values()), None)
    return (None, None) if chosen is None else (chosen.smr, chosen.smr_mr)


def _show_forecast(found: TrainingForecast, format: OutputFormat) -> None:
    rows = [{"figure": figure, "value": value} for figure, value in found.lines(duration)]
    columns = [Column("figure", "what"), Column("value", "predicted")]
    emit(rows, columns, format, title=f"{found.recipe} on {found.device}", document=found.to_json())
