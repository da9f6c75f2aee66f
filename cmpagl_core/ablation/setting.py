"""The starting point of a study: a recipe, or the newest run, which is then the baseline itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from cmpagl_core.ablation.trials import VARIANT_RUNS, StudySetting
from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.files import scratch_folder, write_text
from cmpagl_core.progress import Progress
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import load_recipe, override_recipe, require_distinct
from cmpagl_core.run_data import own_data
from cmpagl_core.runs import open_run
from cmpagl_core.training.forecast import forecast
from cmpagl_core.training.start import TrainRequest
from cmpagl_core.workspace import Workspace


@dataclass(frozen=True)
class Start:
    """The baseline's recipe, the default seeds, and the study's setting."""

    recipe: Recipe
    name: str
    seeds: tuple[int, ...]
    setting: StudySetting


def start_study(
    workspace: Workspace,
    recipe: str | None,
    overrides: Iterable[str],
    data: str | None,
    split: str,
    results: Path | None,
    device: torch.device,
    progress: Progress,
) -> Start:
    """recipe: a name or file; None means the newest run's. results: folder of finished trials.

    Raises DataError if the run or its data set does not exist, MismatchError if the data set was prepared again.
    """
    given = tuple(overrides)
    require_distinct(given)
    if recipe is None:
        run = open_run(workspace.find("runs"))
        chosen, name = override_recipe(run.recipe, given), run.root.name
        prepared = own_data(workspace, run) if data is None else open_prepared(workspace.find("data", data))
    else:
        chosen, name = load_recipe(recipe, given), Path(recipe).stem
        prepared = open_prepared(workspace.find("data", data or chosen.data.dataset or None))
    folder = workspace.root / VARIANT_RUNS / "results" if results is None else results
    return Start(chosen, name, (chosen.train.seed,), StudySetting(workspace, prepared, split, folder, device, progress))


def measured_training(start: Start) -> float:
    """Seconds of one training of the baseline on this machine, from a few measured steps."""
    setting = start.setting
    with scratch_folder("recipe") as folder:
        path = folder / f"{start.name}.yaml"
        write_text(path, start.recipe.to_yaml())
        request = TrainRequest(recipe=str(path), data=str(setting.prepared.root))
        return forecast(request, setting.workspace, setting.progress, setting.device).training_s
