"""`cmpagl runs`: list finished runs."""

from __future__ import annotations

import typer

from cmpagl_cli.commands.options import FormatOption, settings
from cmpagl_cli.views import Column, emit


def runs_list(ctx: typer.Context, format: FormatOption = "table") -> None:
    """List the workspace's finished runs, newest first.

    Examples:
      cmpagl runs list
      cmpagl runs list --format json
    """
    from cmpagl_core.runs import list_runs

    given = settings(ctx)
    rows = [
        {
            "name": run.root.name,
            "dataset": run.info.dataset,
            "recipe": run.info.recipe_name,
            "seed": run.info.seed,
            "mr": run.info.best.mr,
            "best_epoch": run.info.best.epoch,
            "epochs": run.info.epochs,
            "minutes": run.info.elapsed_s / 60,
            "started_at": run.info.started_at,
            "path": str(run.root),
        }
        for run in list_runs(given.workspace, given.progress)
    ]
    columns = [
        Column("name"),
        Column("dataset"),
        Column("recipe"),
        Column("seed"),
        Column("mr", "selection mR"),
        Column("best_epoch", "best epoch"),
        Column("epochs"),
        Column("minutes", digits=1),
        Column("started_at", "started at"),
    ]
    emit(rows, columns if format == "table" else [*columns, Column("path")], format)
    if not rows:
        given.progress.say(f"no finished runs in {given.workspace.root / 'runs'}; train one with `cmpagl train`")
