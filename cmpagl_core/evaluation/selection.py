"""What a run was trained and chosen on, and choosing its re-ranking parameters again (method, sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cmpagl_core.datasets.prepared import DataSplit, PreparedDataset, open_prepared
from cmpagl_core.datasets.splits import selection_splits
from cmpagl_core.encoders.export import run_features
from cmpagl_core.errors import DataError, MismatchError
from cmpagl_core.evaluation.evaluate import is_pre_aligned
from cmpagl_core.evaluation.protocol import Overlap, find_overlap, require_not_test
from cmpagl_core.evaluation.scored import Tested
from cmpagl_core.evaluation.sensitivity import Sensitivity, smr_sensitivity
from cmpagl_core.evaluation.tune import SmrChoice, choose_smr, choose_temperatures
from cmpagl_core.progress import Progress
from cmpagl_core.ranking.chain import Tuned
from cmpagl_core.ranking.itm import ALL_PAIRS, itm_scores
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.ranking.smr import SmrForm
from cmpagl_core.runs import LoadedModel, Run, open_run, write_info
from cmpagl_core.runs import SmrChoice as KeptChoice
from cmpagl_core.workspace import Workspace

SELECTION = "selection"


@dataclass(frozen=True, eq=False)
class TestedSplit:
    """A split that a run is evaluated on."""

    split: DataSplit
    manifest_sha256: str
    overlap: Overlap | None
    other_dataset: str  # name of the data set where it is not the run's own, else empty


def open_tested(workspace: Workspace, run: Run, data: str | None, split: str) -> TestedSplit:
    """The split to evaluate a run on: of the data set it was trained on, or of `data`; and what both share.

    split: train, val, test, all or "selection". Raises DataError when it cannot be found, MismatchError when the
    run's own data set was made anew with other content.
    """
    own = training_data(workspace, run)
    prepared = open_prepared(workspace.find("data", data)) if data is not None else own
    if prepared is None:
        raise DataError(
            f"the data set {run.info.dataset} that {run.root.name} was trained on is not at {run.info.dataset_root}",
            hint="name one with --data",
        )
    manifest = prepared.manifest.sha256
    same = manifest == run.info.manifest_sha256 or not run.info.manifest_sha256
    if data is None and not same:
        raise MismatchError(
            f"{prepared.root} was prepared anew with other content since {run.root.name} was trained",
            hint="train again, or name the data set with --data to evaluate on it nevertheless",
        )
    train, selection = (None, None) if own is None else selection_splits(own, run.recipe.data.selection)
    if split == SELECTION:
        if selection is None or not same:
            raise DataError(f"{run.root.name} chose nothing on {prepared.name}", hint="name one of its splits")
        tested = selection
    else:
        tested = prepared.split(split)
    overlap = None if train is None else find_overlap(train, tested, same_dataset=same)
    return TestedSplit(tested, manifest, overlap, "" if same else prepared.name)


def shared_with_training(workspace: Workspace, run: Run, prepared: PreparedDataset, split: str) -> Overlap | None:
    """What a split shares with the pictures that the run was trained on; None where that is nothing or not known."""
    own = training_data(workspace, run)
    if own is None:
        return None
    train = selection_splits(own, run.recipe.data.selection)[0]
    same = prepared.manifest.sha256 == run.info.manifest_sha256 or not run.info.manifest_sha256
    return find_overlap(train, prepared.split(split), same_dataset=same)


def training_data(workspace: Workspace, run: Run) -> PreparedDataset | None:
    """The data set that a run was trained on, where it still is; by its path, then by its name."""
    for place in (Path(run.info.dataset_root), workspace.root / "data" / run.info.dataset):
        try:
            return open_prepared(place)
        except DataError:
            continue
    return None


def tune_run(
    workspace: Workspace,
    run: Run,
    split: str,
    progress: Progress,
    device: torch.device,
    form: SmrForm | None = None,
    gammas: Sequence[float] | None = None,
    keep: bool = True,
) -> tuple[SmrChoice, Tuned]:
    """Choose SMR's gammas and the temperatures of re-rankings on a split by its name, and keep them in the run.

    Raises GuardError for the test split, before anything is opened.
    """
    require_not_test(split, "SMR's gammas")
    tested = open_tested(workspace, run, None, split)
    choice, tuned = choose_for_run(run, run.load(device), tested.split, progress, form, gammas)
    if keep:
        keep_choice(run, choice, tuned)
    return choice, tuned


def choose_for_run(
    run: Run,
    loaded: LoadedModel,
    split: DataSplit,
    progress: Progress,
    form: SmrForm | None = None,
    gammas: Sequence[float] | None = None,
) -> tuple[SmrChoice, Tuned]:
    """SMR's grid and the other re-rankings' temperatures on a split that is not the test split.

    form and gammas: the recipe's when None. Raises GuardError for the test split.
    """
    require_not_test(split.name, "the parameters of re-rankings")
    scores = plain_scores(run, loaded, split, progress)
    part = run.recipe.evaluate
    choice = choose_smr(
        scores, split.caption_image, part.smr_gammas if gammas is None else gammas, form or part.smr_form, progress
    )
    return choice, choose_temperatures(scores, split.caption_image, choice.gammas)


def sensitivity_of_run(
    workspace: Workspace,
    run: Run,
    split: str,
    progress: Progress,
    device: torch.device,
    gammas: Sequence[float] | None = None,
    samples: int = 1000,
) -> tuple[Sensitivity, Tested]:
    """How much SMR's gammas matter on a split by its name, beside every other re-ranking; nothing is kept.

    gammas: the recipe's when None. Raises GuardError for the test split, before anything is opened.
    """
    require_not_test(split, "among SMR's gammas")
    tested = open_tested(workspace, run, None, split)
    require_not_test(tested.split.name, "among SMR's gammas")
    scores = plain_scores(run, run.load(device), tested.split, progress)
    found = smr_sensitivity(
        scores,
        tested.split.caption_image,
        tested.split.image_ids,
        run.recipe.evaluate.smr_gammas if gammas is None else gammas,
        samples,
        progress=progress,
    )
    return found, Tested.of(tested.split, tested.manifest_sha256)


def keep_choice(run: Run, choice: SmrChoice, tuned: Tuned) -> Run:
    """Write chosen parameters into the run; everything else of it stays. Returns the run as opened again."""
    kept = KeptChoice(choice.form, choice.gamma1, choice.gamma2, choice.mr)
    write_info(run.root, replace(run.info, smr=kept, dual_softmax=tuned.dual_softmax, sinkhorn=tuned.sinkhorn))
    return open_run(run.root)


def with_temperatures(workspace: Workspace, run: Run, loaded: LoadedModel, known: Tuned, progress: Progress) -> Tuned:
    """The same parameters, all temperatures too, chosen on the selection split and kept in the run.

    Unchanged where the training data are no longer there.
    """
    own = training_data(workspace, run)
    if known.has_temperatures or own is None:
        return known
    selection = selection_splits(own, run.recipe.data.selection)[1]
    progress.say(f"choosing the temperatures of re-rankings on the {selection.name} split, once for this run")
    scores = plain_scores(run, loaded, selection, progress)
    tuned = choose_temperatures(scores, selection.caption_image, known.smr)
    write_info(run.root, replace(run.info, dual_softmax=tuned.dual_softmax, sinkhorn=tuned.sinkhorn))
    return tuned


def plain_scores(run: Run, loaded: LoadedModel, split: DataSplit, progress: Progress) -> ScoreMatrix:
    """What a run ranks by before any re-ranking: cosines, or match probabilities where nothing aligned features."""
    features = run_features(loaded, run.root.name, split, progress)
    scores = ScoreMatrix.from_features(features.image_features, features.text_features).held()
    return scores if is_pre_aligned(run.recipe) else itm_scores(loaded, split, scores, ALL_PAIRS, progress)
