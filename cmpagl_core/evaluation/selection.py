"""Splits that a run is tested on, and choosing its re-ranking parameters on its selection split (sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cmpagl_core.datasets.prepared import DataSplit, open_prepared
from cmpagl_core.datasets.splits import selection_splits
from cmpagl_core.errors import DataError, GuardError, MismatchError, UsageError
from cmpagl_core.evaluation.evaluate import offered, split_scores
from cmpagl_core.evaluation.kept_params import add_params, read_params
from cmpagl_core.evaluation.protocol import Overlap, find_overlap, require_not_test, written_overlap
from cmpagl_core.evaluation.score_files import ScoresInfo, save_scores
from cmpagl_core.evaluation.scored import Tested
from cmpagl_core.evaluation.sensitivity import Sensitivity, smr_sensitivity
from cmpagl_core.evaluation.stages import Available, Base, Stage, wanted_stages
from cmpagl_core.evaluation.tune import SmrChoice, choose_params, choose_smr, choose_temperature
from cmpagl_core.progress import Progress
from cmpagl_core.ranking.chain import TEMPERED, ChosenParams, RerankParams
from cmpagl_core.ranking.smr import SmrForm
from cmpagl_core.run_data import is_own, own_data
from cmpagl_core.runs import LoadedModel, Run
from cmpagl_core.workspace import Workspace

SELECTION = "selection"


@dataclass(frozen=True, eq=False)
class TestedSplit:
    """A split that a run is evaluated on."""

    split: DataSplit
    manifest_sha256: str
    other_dataset: str  # name of the data set where it is not the run's own, else empty


def open_tested(workspace: Workspace, run: Run, data: str | None, split: str) -> TestedSplit:
    """The split to evaluate a run on: of the data set it was trained on, or of `data`.

    split: train, val, test, all or "selection". Raises DataError when it cannot be found, MismatchError when the
    run's own data set was made anew with other content.
    """
    prepared = own_data(workspace, run) if data is None else open_prepared(workspace.find("data", data))
    same = data is None or is_own(run, prepared)
    if split == SELECTION:
        if not same:
            raise DataError(f"{run.root.name} chose nothing on {prepared.name}", hint="name one of its splits")
        tested = selection_splits(prepared, run.recipe.data.selection, check_files=False)[1].checked()
    else:
        tested = prepared.split(split)
    return TestedSplit(tested, prepared.manifest.sha256, "" if same else prepared.name)


def shared_with_training(run: Run, tested: DataSplit) -> Overlap | None:
    """What a split shares with what the run was trained and chosen on; None where that is nothing."""
    return find_overlap(run.seen, run.info.dataset, tested)


def export_scores(
    run: Run, split: DataSplit, out: Path, progress: Progress, device: torch.device, manifest_sha256: str = ""
) -> ScoresInfo:
    """Write what a run ranks a split by before any re-ranking, images x captions, and beside it what that is of.

    Raises DataError for a picture that cannot be read, CmpaglError when the disk refuses.
    """
    loaded = run.load(device)
    available = offered(loaded, run, None, ChosenParams())
    base = available.bases[0]
    about = ScoresInfo(
        model=run.root.name,
        model_sha256=loaded.sha256,
        dataset=split.dataset,
        manifest_sha256=manifest_sha256,
        split=split.name,
        split_sha256=split.sha256,
        base=base,
        overlap=written_overlap(shared_with_training(run, split)),
    )
    return save_scores(out, split_scores(loaded, run, split, available, progress)(base), about)


def tune_run(
    workspace: Workspace,
    run: Run,
    split: str,
    progress: Progress,
    device: torch.device,
    base: Base | None = None,
    form: SmrForm | None = None,
    gammas: Sequence[float] | None = None,
    keep: bool = True,
) -> tuple[SmrChoice, RerankParams]:
    """Choose SMR's gammas and the temperatures of re-rankings on a split by its name, and keep them beside the run.

    base: the scores that are re-ranked; the plain ranking when None. form and gammas: the recipe's when None. Raises
    GuardError for the test split, before anything is opened, and for images that the run was trained on; UsageError
    for scores that the model has not, or a choice to be kept that would never be used.
    """
    tested = _open_for_choosing(workspace, run, split, "SMR's gammas")
    if keep and tested.split.sha256 != run.info.selection_sha256:
        raise UsageError(
            f"a choice on {split} cannot be kept: {run.root.name} uses what was chosen on its selection split",
            hint="choose on selection, or pass --no-keep",
        )
    loaded = run.load(device)
    available = offered(loaded, run, None, read_params(run, progress))
    chosen_base = available.bases[0] if base is None else base
    if chosen_base not in available.bases:
        raise UsageError(f"{run.root.name} has no {chosen_base} scores", hint=f"it has {', '.join(available.bases)}")
    scores = split_scores(loaded, run, tested.split, available, progress)(chosen_base)
    owners, cfg = tested.split.caption_image, run.recipe.evaluate
    choice = choose_smr(scores, owners, cfg.smr_gammas if gammas is None else gammas, form or cfg.smr_form, progress)
    temperatures = {name: choose_temperature(name, scores, owners) for name in TEMPERED}
    params = RerankParams(
        choice.gammas, temperatures["dual_softmax"], temperatures["sinkhorn"], choice.mr
    )  # fmt: skip
    if keep:
        add_params(run, ChosenParams(), ChosenParams({available.scores_of(chosen_base): params}), progress)
    return choice, params


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

    gammas: the recipe's when None. Raises GuardError as `tune_run` does.
    """
    tested = _open_for_choosing(workspace, run, split, "among SMR's gammas")
    loaded = run.load(device)
    available = offered(loaded, run, None, ChosenParams())
    found = smr_sensitivity(
        split_scores(loaded, run, tested.split, available, progress)(available.bases[0]),
        tested.split.caption_image,
        tested.split.image_ids,
        run.recipe.evaluate.smr_gammas if gammas is None else gammas,
        samples,
        progress=progress,
    )
    return found, Tested.of(tested.split, tested.manifest_sha256)


def params_for(
    workspace: Workspace, run: Run, loaded: LoadedModel, wanted: str, itm_k: int | None, progress: Progress
) -> ChosenParams:
    """The parameters that a run keeps; where stages are asked for by name or all, what they lack is chosen and kept.

    wanted: as for `wanted_stages`. What cannot be chosen, since the run's own data are gone or were changed, is said.
    """
    known = read_params(run, progress)
    if wanted in ("none", "default"):
        return known
    available = offered(loaded, run, itm_k, known)
    lacking = available.lacking(wanted_stages(wanted, available.bases))
    if not lacking:
        return known
    try:
        part = run.recipe.data.selection
        selection = selection_splits(own_data(workspace, run), part, check_files=False)[1].checked()
    except (DataError, MismatchError) as error:
        progress.say(f"parameters of {', '.join(stage.name for stage in lacking)} cannot be chosen: {error}")
        return known
    names = ", ".join(stage.name for stage in lacking)
    progress.say(f"choosing parameters of {names} on the {selection.name} split, once for this run")
    params = choose_missing(run, loaded, selection, lacking, available, progress)
    add_params(run, known, params, progress)
    return params


def choose_missing(
    run: Run,
    loaded: LoadedModel,
    selection: DataSplit,
    stages: Sequence[Stage],
    available: Available,
    progress: Progress,
) -> ChosenParams:
    """What the stages lack, chosen on a split that is not the test split. Raises GuardError for the test split."""
    require_not_test(selection.name, "the parameters of re-rankings")
    lacking = available.lacking(stages)
    if not lacking:
        return available.params
    cfg = run.recipe.evaluate
    scores = split_scores(loaded, run, selection, available, progress)
    return choose_params(
        lacking, scores, selection.caption_image, available, cfg.smr_gammas, cfg.smr_form, progress
    )  # fmt: skip


def _open_for_choosing(workspace: Workspace, run: Run, split: str, what: str) -> TestedSplit:
    require_not_test(split, what)
    tested = open_tested(workspace, run, None, split)
    shared = sum(picture in run.seen.train_images for picture in tested.split.picture_sha256)
    if shared:
        raise GuardError(
            f"choosing {what} on {split} would flatter them: {run.root.name} was trained on {shared:,} of its "
            f"{len(tested.split):,} pictures",
            hint="choose on the run's selection split",
        )
    return tested
