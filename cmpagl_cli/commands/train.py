"""`cmpagl train`: train a recipe on a data set."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cmpagl_cli.commands.options import DataOption, FormatOption, NameOption, SeedOption, SetOption, settings
from cmpagl_cli.views import Column, duration, emit

if TYPE_CHECKING:
    from cmpagl_cli.commands.options import OutputFormat, Settings
    from cmpagl_core.ranking.rerank import Gammas
    from cmpagl_core.runs import Run
    from cmpagl_core.training.forecast import TrainingForecast
    from cmpagl_core.training.start import TrainRequest

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
    devices: Annotated[
        int | None,
        typer.Option(
            "--devices",
            min=1,
            metavar="N",
            help="Train on N GPUs of this machine, or in N processes on its CPU; several machines: torchrun.",
        ),
    ] = None,
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
      torchrun --nproc-per-node 8 -m cmpagl_cli train rsicd
      cmpagl train rsicd --devices 8
    """
    from cmpagl_core.training.start import TrainRequest

    given = settings(ctx)
    request = TrainRequest(recipe, data, name, seed, tuple(overrides or ()), resume)
    if dry_run:
        from cmpagl_core.training.forecast import forecast

        _show_forecast(forecast(request, given.workspace, given.progress, given.compute_device()), format)
        return
    if (devices or 1) > 1 and not is_one_of_several():
        from cmpagl_core.training.launch import launch

        raise typer.Exit(int(launch(devices or 1, sys.argv[1:])))
    _train(given, request, format)


def is_one_of_several() -> bool:
    """Whether torchrun, or `--devices`, has started this process beside others."""
    from cmpagl_core.ranks import under_torchrun

    return under_torchrun()


def _train(given: Settings, request: TrainRequest, format: OutputFormat) -> None:
    """Train in this process, which may be one of several: the first shows the run, and one says what went wrong."""
    from cmpagl_core.errors import CmpaglError, ExitCode
    from cmpagl_core.ranks import join_ranks, leave_ranks
    from cmpagl_core.training.loop import join_training
    from cmpagl_core.training.start import start_training

    device = given.compute_device()
    ranks = join_ranks(device)
    try:
        if ranks.first:
            _show_run(start_training(request, given.workspace, given.progress, device, ranks), format)
        else:
            join_training(ranks, device)
    except (Exception, KeyboardInterrupt) as error:
        if ranks.claim("said why it ended"):
            raise
        raise typer.Exit(int(error.exit_code if isinstance(error, CmpaglError) else ExitCode.FAILURE)) from None
    leave_ranks(ranks)


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
