"""From a user's request to a training: which recipe, data set and folder, or which training to resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch

from cmpagl_core.datasets.prepared import PreparedDataset, open_prepared
from cmpagl_core.errors import BusyError, UsageError
from cmpagl_core.locks import hold
from cmpagl_core.progress import Progress
from cmpagl_core.ranks import ALONE, Ranks
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import find_recipe, load_recipe, override_recipe
from cmpagl_core.runs import INFO_FILE, RECIPE_FILE, Run
from cmpagl_core.training.loop import fit
from cmpagl_core.training.resume import has_state, read_about, remove_state, unfinished_run
from cmpagl_core.workspace import Workspace


@dataclass(frozen=True)
class TrainRequest:
    """The arguments of `cmpagl train`; None and empty mean the default."""

    recipe: str | None = None
    data: str | None = None
    name: str | None = None
    seed: int | None = None
    overrides: tuple[str, ...] = ()
    resume: bool = False


def start_training(
    request: TrainRequest, workspace: Workspace, progress: Progress, device: torch.device, ranks: Ranks = ALONE
) -> Run:
    """Start or resume a training, as the first of its processes.

    Raises UsageError for contradictory arguments, and everything that `fit` raises.
    """
    if request.resume:
        return resume_training(request, workspace, progress, device, ranks)
    recipe, name = requested_recipe(request)
    with new_run_folder(workspace, request.name, name) as root:
        prepared = requested_data(request, recipe, workspace)
        progress.say(f"training {name} on {prepared.name} into {root}")
        return fit(
            name_data(recipe, prepared, workspace),
            prepared,
            root,
            progress,
            device,
            cache_root=workspace.cache,
            recipe_name=name,
            distill_from=distill_data(recipe, workspace),
            ranks=ranks,
        )


def resume_training(
    request: TrainRequest, workspace: Workspace, progress: Progress, device: torch.device, ranks: Ranks = ALONE
) -> Run:
    """Resume the training of that name, or the newest unfinished one of that recipe or of any.

    It keeps its original recipe. Raises UsageError if asked to change it, DataError if there is nothing to resume,
    BusyError if another process is training it.
    """
    if request.overrides or request.seed is not None:
        raise UsageError("--set and --seed cannot change a training that has started", hint="leave out --resume")
    wanted = Path(request.recipe).stem if request.recipe is not None else None
    if request.name is None:
        root = unfinished_run(workspace.root / "runs", wanted)
    else:
        root = workspace.folder("runs", request.name)
    with hold(root, instead="name another training with --name"):
        if (root / INFO_FILE).is_file():
            remove_state(root)
            raise UsageError(f"{root} is finished", hint="train into another --name")
        identity, _ = read_about(root)
        if wanted is not None and wanted != identity.recipe_name:
            raise UsageError(f"{root} was started with the recipe {identity.recipe_name}, not {wanted}")
        recipe = load_recipe(root / RECIPE_FILE)
        prepared = requested_data(request, recipe, workspace)
        named = distill_data(recipe, workspace)
        return fit(
            recipe,
            prepared,
            root,
            progress,
            device,
            resume=True,
            cache_root=workspace.cache,
            distill_from=named,
            ranks=ranks,
        )


def requested_recipe(request: TrainRequest) -> tuple[Recipe, str]:
    """The recipe with its overrides, and its name. Raises UsageError if none is given, or RecipeError."""
    if request.recipe is None:
        raise UsageError("no recipe is given", hint="`cmpagl recipe list` shows them; --resume needs none")
    seed = () if request.seed is None else (f"train.seed={request.seed}",)
    return load_recipe(request.recipe, (*request.overrides, *seed)), find_recipe(request.recipe).stem


def requested_data(request: TrainRequest, recipe: Recipe, workspace: Workspace) -> PreparedDataset:
    """The requested data set, else the recipe's, else the newest. Raises DataError if it does not exist."""
    return open_prepared(workspace.find("data", request.data or recipe.data.dataset or None))


def distill_data(recipe: Recipe, workspace: Workspace) -> tuple[PreparedDataset, ...]:
    """The data sets that a distilled start learns from; none without one. Raises DataError when one is not there."""
    names = recipe.distill.datasets if recipe.distill.epochs else ()
    return tuple(open_prepared(workspace.find("data", name)) for name in names)


def name_data(recipe: Recipe, prepared: PreparedDataset, workspace: Workspace) -> Recipe:
    """The recipe with its data set filled in, so that resuming finds it even if a newer one exists."""
    place = prepared.root
    name = place.name if place == workspace.folder("data", place.name) else str(place.absolute())
    return override_recipe(recipe, (f"data.dataset={json.dumps(name)}",))


@contextmanager
def new_run_folder(workspace: Workspace, name: str | None, recipe_name: str) -> Iterator[Path]:
    """Lock the folder of a new run: the requested name, else the recipe's, with a number appended if that is taken.

    Raises UsageError if the requested name is taken, since nothing is overwritten, and BusyError if another process
    is training into it.
    """
    if name is None:
        with _first_free(workspace, recipe_name) as root:
            yield root
        return
    root = workspace.folder("runs", name)
    with hold(root, instead="choose another --name"):
        if _is_taken(root):
            unfinished = not (root / INFO_FILE).is_file()
            if not unfinished:
                remove_state(root)
            hint = "resume it with --resume, or choose another --name" if unfinished else "choose another --name"
            raise UsageError(f"{root} already exists", hint=hint)
        yield root


@contextmanager
def _first_free(workspace: Workspace, recipe_name: str) -> Iterator[Path]:
    for number in count(1):
        root = workspace.folder("runs", recipe_name if number == 1 else f"{recipe_name}-{number}")
        if _is_taken(root):
            continue
        with ExitStack() as stack:
            try:
                stack.enter_context(hold(root))
            except BusyError:
                continue  # another training has taken the name but not yet saved its first state
            if not _is_taken(root):  # it may have finished meanwhile
                yield root
                return


def _is_taken(root: Path) -> bool:
    return (root / INFO_FILE).exists() or has_state(root)
