"""The data of a run: its training data set, found and checked, and the splits on which it is evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmpagl_core.datasets.manifest import MANIFEST_FILE
from cmpagl_core.datasets.prepared import DataSplit, PreparedDataset, open_prepared
from cmpagl_core.datasets.splits import selection_splits
from cmpagl_core.errors import DataError, MismatchError
from cmpagl_core.recipe import Recipe
from cmpagl_core.runs import Run
from cmpagl_core.workspace import Workspace

SELECTION = "selection"


@dataclass(frozen=True, eq=False)
class EvalSplit:
    """A split on which a run is evaluated."""

    split: DataSplit
    manifest_sha256: str = ""  # of its prepared data set
    other_dataset: str = ""  # name of the data set if it is not the run's own, else empty


def own_data(workspace: Workspace, run: Run) -> PreparedDataset:
    """A run's training data set: at its original path, else by its name.

    Raises DataError if there is none, MismatchError if its content has changed.
    """
    places = dict.fromkeys((Path(run.info.dataset_root), workspace.root / "data" / run.info.dataset))
    found = [open_prepared(place) for place in places if (place / MANIFEST_FILE).is_file()]
    if not found:
        raise DataError(
            f"the data set {run.info.dataset} that {run.root.name} was trained on is not at {run.info.dataset_root}",
            hint="choose one with --data",
        )
    for prepared in found:
        if is_own(run, prepared):
            return prepared
    raise MismatchError(
        f"{found[0].root} was prepared again with other content since {run.root.name} was trained",
        hint="train again; or pass the data set with --data to use it anyway, in which case its overlap with the "
        "training data is reported",
    )


def is_own(run: Run, prepared: PreparedDataset) -> bool:
    """Whether a data set is the run's own: the same images, captions and splits.

    A distilled start may have seen the train images of other data sets too.
    """
    if prepared.manifest.sha256 != run.info.manifest_sha256:
        return False
    train, selection = selection_splits(prepared, run.recipe.data.selection, check_files=False)
    trained = set(train.image_sha256)
    return (
        (train.sha256, selection.sha256) == (run.info.train_sha256, run.info.selection_sha256)
        and (trained <= run.seen.train_images if run.info.start_key else trained == run.seen.train_images)
        and set(selection.image_sha256) == run.seen.selection_images
    )


def open_tested(workspace: Workspace, run: Run, data: str | None, split: str) -> EvalSplit:
    """The split on which to evaluate a run: of its training data set, or of `data`.

    split: train, val, test, all or "selection". Raises DataError if it cannot be found, MismatchError if the run's own
    data set was prepared again with other content.
    """
    prepared = own_data(workspace, run) if data is None else open_prepared(workspace.find("data", data))
    same = data is None or is_own(run, prepared)
    if split == SELECTION:
        if not same:
            raise DataError(
                f"{run.root.name} has no selection split in {prepared.name}", hint="choose one of its splits"
            )
        tested = selection_of(prepared, run.recipe)
    else:
        tested = prepared.split(split)
    return EvalSplit(tested, prepared.manifest.sha256, "" if same else prepared.name)


def open_selection(workspace: Workspace, run: Run) -> DataSplit:
    """The selection split of a run's own data set. Raises as `own_data` does."""
    return selection_of(own_data(workspace, run), run.recipe)


def selection_of(prepared: PreparedDataset, recipe: Recipe) -> DataSplit:
    """The selection split of a recipe's trainings on a data set, with its files checked."""
    return selection_splits(prepared, recipe.data.selection, check_files=False)[1].checked()
