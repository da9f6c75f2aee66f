"""The data set that a run was trained on: found again, and checked against what the run remembers of it."""

from __future__ import annotations

from pathlib import Path

from cmpagl_core.datasets.manifest import MANIFEST_FILE
from cmpagl_core.datasets.prepared import PreparedDataset, open_prepared
from cmpagl_core.datasets.splits import selection_splits
from cmpagl_core.errors import DataError, MismatchError
from cmpagl_core.runs import Run
from cmpagl_core.workspace import Workspace


def own_data(workspace: Workspace, run: Run) -> PreparedDataset:
    """The data set that a run was trained on: where it was then, else under its name.

    Raises DataError where there is none, MismatchError where all that is there has other content.
    """
    places = dict.fromkeys((Path(run.info.dataset_root), workspace.root / "data" / run.info.dataset))
    found = [open_prepared(place) for place in places if (place / MANIFEST_FILE).is_file()]
    if not found:
        raise DataError(
            f"the data set {run.info.dataset} that {run.root.name} was trained on is not at {run.info.dataset_root}",
            hint="name one with --data",
        )
    for prepared in found:
        if is_own(run, prepared):
            return prepared
    raise MismatchError(
        f"{found[0].root} was prepared anew with other content since {run.root.name} was trained",
        hint="train again; or name the data set with --data to take it nevertheless: what it shares with the "
        "training is then said",
    )


def is_own(run: Run, prepared: PreparedDataset) -> bool:
    """Whether a data set is the one that a run was trained and chosen on: images, captions and splits."""
    if prepared.manifest.sha256 != run.info.manifest_sha256:
        return False
    train, selection = selection_splits(prepared, run.recipe.data.selection, check_files=False)
    return (
        (train.sha256, selection.sha256) == (run.info.train_sha256, run.info.selection_sha256)
        and set(train.picture_sha256) == run.seen.train_images
        and set(selection.picture_sha256) == run.seen.selection_images
    )
