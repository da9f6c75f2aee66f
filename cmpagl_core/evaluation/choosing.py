"""Chooses re-ranking parameters: for a run on its selection split, for files on another split (sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.datasets.prepared import DataSplit, PreparedDataset
from cmpagl_core.encoders.encode import preprocessing
from cmpagl_core.encoders.feature_set import load_feature_set
from cmpagl_core.encoders.result_cache import Values
from cmpagl_core.encoders.split_encoder import SplitEncoder
from cmpagl_core.errors import DataError, GuardError, MismatchError, UsageError
from cmpagl_core.evaluation.protocol import require_not_test
from cmpagl_core.evaluation.score_files import equal_scores, open_scores, read_scores_info, require_shape
from cmpagl_core.evaluation.sensitivity import Sensitivity, smr_sensitivity
from cmpagl_core.evaluation.stages import BASES, Available, Base, Stage, wanted_stages
from cmpagl_core.evaluation.tune import SmrChoice, SmrGrid, choose_params, choose_smr, choose_temperature
from cmpagl_core.progress import Progress
from cmpagl_core.ranking.itm import ALL_PAIRS, Candidates, match_split, matched_scores
from cmpagl_core.ranking.kept_params import add_params, read_params
from cmpagl_core.ranking.rerank import TEMPERED, ChosenParams, RerankParams
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.ranking.smr import SmrForm
from cmpagl_core.recipe import EvaluatePart
from cmpagl_core.run_data import EvalSplit, open_selection, open_tested
from cmpagl_core.runs import Run
from cmpagl_core.session import Session
from cmpagl_core.workspace import Workspace

_ELSE = "give features or scores of the val split"


@dataclass(frozen=True, eq=False)
class RunScorer:
    """Scores splits with a run's model, which is loaded only for what was not computed before."""

    encoder: SplitEncoder

    @property
    def run(self) -> Run:
        return self.encoder.run

    @property
    def progress(self) -> Progress:
        return self.encoder.progress

    def offers(self, params: ChosenParams, itm_k: int | None = None) -> Available:
        """The stages that the model can be evaluated at. itm_k: ITM candidates; the recipe's if None."""
        aligned, cfg = self.run.recipe.losses.aligns_features, self.run.recipe.evaluate
        k = ALL_PAIRS if not aligned else cfg.itm_k if itm_k is None else itm_k
        with_itm = self.run.recipe.matches_pairs and (k > 0 or not aligned)
        there = {"cosine": aligned, "balanced": aligned and self.run.recipe.train.balance_images > 0, "itm": with_itm}
        bases = tuple(base for base in BASES if there[base])
        return Available(bases, params, k if with_itm else None, cfg.smr)

    def scores(self, split: DataSplit, itm_k: int | None) -> Callable[[Base], ScoreMatrix]:
        """A function from the name of scores to those of a split, images x texts; ITM scores are computed once.

        The split is encoded immediately. itm_k: as in `offers`. Raises DataError for an unreadable image.
        """
        found = self.encoder.features(split)
        cosines = ScoreMatrix.from_features(found.image_features, found.text_features).in_memory()

        def scores(base: Base) -> ScoreMatrix:
            if base == "cosine":
                return cosines
            if base == "balanced":
                less = self.encoder.potentials(found)
                return ScoreMatrix.from_features(found.image_features, found.text_features, less=less)
            return matched_scores(split, cosines, itm_k or ALL_PAIRS, partial(self._match, split))

        return cache(scores)

    def _match(self, split: DataSplit, texts: Sequence[str], pairs: Candidates) -> Values:
        seen = {"preprocessing": preprocessing(self.run.recipe), "images": split.image_keys}
        result = self.encoder.result(
            "match_probabilities",
            {**seen, "texts": texts, "pairs": pairs.sha256},
            (len(pairs),),
            _are_probabilities,
            lambda: match_split(self.encoder.loaded, split, texts, pairs, self.progress),
        )
        return self.encoder.cached(result)


@dataclass(frozen=True)
class TuneRequest:
    """On which split a run's re-rankings are tuned, and over which grid; None: the recipe's."""

    split: str = "selection"
    base: Base | None = None  # the scores to re-rank; those of the plain ranking if None
    form: SmrForm | None = None
    gammas: tuple[float, ...] | None = None
    keep: bool = True  # beside the run
    samples: int = 1000  # of the bootstrap, for the sensitivity

    def grid(self, cfg: EvaluatePart) -> SmrGrid:
        """The grid of SMR's gammas."""
        return SmrGrid(self.form or cfg.smr_form, cfg.smr_gammas if self.gammas is None else self.gammas)


def tune_run(session: Session, run: Run, request: TuneRequest = TuneRequest()) -> tuple[SmrChoice, RerankParams]:
    """Choose SMR's gammas and the re-rankings' temperatures on a named split, and save them in the run.

    Raises GuardError for the test split, before anything is opened, and for training images of the run; UsageError
    for scores that the model does not have, or if the saved choice would never be used.
    """
    tested = _open_for_choosing(session.workspace, run, request.split, "SMR's gammas")
    if request.keep and tested.split.sha256 != run.info.selection_sha256:
        raise UsageError(
            f"a choice on {request.split} cannot be saved: {run.root.name} uses those of its selection split",
            hint="choose on selection, or pass --no-keep",
        )
    progress = session.progress
    scorer = RunScorer(SplitEncoder(run, session))
    available = scorer.offers(read_params(run, progress))
    base = available.bases[0] if request.base is None else request.base
    if base not in available.bases:
        raise UsageError(f"{run.root.name} has no {base} scores", hint=f"it has {', '.join(available.bases)}")
    scores = scorer.scores(tested.split, available.itm_k)(base)
    owners = tested.split.caption_image
    choice = choose_smr(scores, owners, request.grid(run.recipe.evaluate), progress)
    dual_softmax, sinkhorn = (choose_temperature(name, scores, owners) for name in TEMPERED)
    params = choice.added_to(RerankParams(dual_softmax=dual_softmax, sinkhorn=sinkhorn))
    if request.keep:
        add_params(run, ChosenParams(), ChosenParams({available.scores_of(base): params}), progress)
    return choice, params


def sensitivity_of_run(session: Session, run: Run, request: TuneRequest) -> tuple[Sensitivity, DataSplit]:
    """How much SMR's gammas matter on a named split, beside every other re-ranking; nothing is saved.

    Uses the request's split, gammas and samples. Raises GuardError as `tune_run` does.
    """
    tested = _open_for_choosing(session.workspace, run, request.split, "among SMR's gammas")
    scorer = RunScorer(SplitEncoder(run, session))
    available = scorer.offers(ChosenParams())
    found = smr_sensitivity(
        scorer.scores(tested.split, available.itm_k)(available.bases[0]),
        tested.split.caption_image,
        tested.split.image_ids,
        request.grid(run.recipe.evaluate).gammas,
        request.samples,
        progress=session.progress,
    )
    return found, tested.split


def params_for(workspace: Workspace, scorer: RunScorer, wanted: str, itm_k: int | None = None) -> ChosenParams:
    """A run's saved parameters; for stages requested by name or `all`, missing ones are chosen and saved.

    wanted: as for `wanted_stages`. If they cannot be chosen, because the run's data are gone or changed, a message
    says so.
    """
    run, progress = scorer.run, scorer.progress
    known = read_params(run, progress)
    if wanted in ("none", "default"):
        return known
    available = scorer.offers(known, itm_k)
    lacking = available.lacking(wanted_stages(wanted, available.bases))
    if not lacking:
        return known
    try:
        selection = open_selection(workspace, run)
    except (DataError, MismatchError) as error:
        progress.say(f"parameters of {', '.join(stage.name for stage in lacking)} cannot be chosen: {error}")
        return known
    names = ", ".join(stage.name for stage in lacking)
    progress.say(f"choosing parameters of {names} on the {selection.name} split, once for this run")
    params = choose_missing(scorer, selection, lacking, available)
    add_params(run, known, params, progress)
    return params


def choose_missing(
    scorer: RunScorer, selection: DataSplit, stages: Sequence[Stage], available: Available
) -> ChosenParams:
    """The stages' missing parameters, chosen on another split. Raises GuardError for the test split."""
    require_not_test(selection.name, "re-ranking parameters")
    lacking = available.lacking(stages)
    if not lacking:
        return available.params
    grid, scores = SmrGrid.of(scorer.run.recipe.evaluate), scorer.scores(selection, available.itm_k)
    return choose_params(lacking, scores, selection.caption_image, available, grid, scorer.progress)


@dataclass(frozen=True, eq=False)
class ChoiceScores:
    """Scores of the split on which parameters are chosen: images x captions, and each caption's image."""

    path: Path
    scores: ScoreMatrix
    caption_image: NDArray[np.int64]
    split_sha256: str
    images: frozenset[str]  # SHA-256 of their files
    array: NDArray[Any] | None = None  # of a score file, as stored


def open_choice_features(path: Path) -> ChoiceScores:
    """Features of another split. Raises GuardError for the test split."""
    features = load_feature_set(path)
    require_not_test(features.info.split, "re-rankings")
    scores = ScoreMatrix.from_features(features.image_features, features.text_features)
    images = frozenset(features.image_sha256)
    return ChoiceScores(path, scores, features.text_image, features.info.split_sha256, images)


def open_choice_scores(path: Path, prepared: PreparedDataset, split: str | None) -> ChoiceScores:
    """A score file of another split, named by its description (`export --scores`) or by the user.

    Raises UsageError if neither names the split, GuardError for the test split, MismatchError if both differ or the
    file belongs to other data.
    """
    info = read_scores_info(path)
    named = split or (None if info is None else info.split)
    if named is None:
        raise UsageError(
            f"it is unknown which split {path} belongs to",
            hint="pass --choose-split val, or write it with `export --scores`",
        )
    require_not_test(named, "re-rankings")
    chosen = prepared.split(named)
    if info is not None and info.split_sha256 != chosen.sha256:
        raise MismatchError(
            f"{path} has scores of the {info.split} split of {info.dataset}, not of {named} of {prepared.name}",
            hint="name its data set with --data",
        )
    array = open_scores(path)
    scores = ScoreMatrix.from_array(array)
    require_shape(scores, chosen, str(path))
    images = frozenset(chosen.image_sha256)
    return ChoiceScores(path, scores, chosen.caption_image, chosen.sha256, images, array)


def require_other_images(choice: ChoiceScores, tested: Sequence[str], tested_sha256: str) -> None:
    """Refuse to choose on tested images. tested: SHA-256 of each. Raises GuardError."""
    if choice.split_sha256 and choice.split_sha256 == tested_sha256:
        raise GuardError(
            f"{choice.path} is of the split under evaluation, so choosing on it would bias every re-ranking upwards",
            hint=_ELSE,
        )
    shared = sum(image in choice.images for image in tested)
    if shared:
        raise GuardError(
            f"{choice.path} has {shared:,} of the {len(tested):,} images under evaluation, so choosing on it "
            "would bias every re-ranking upwards",
            hint=_ELSE,
        )


def require_other_scores(choice: ChoiceScores, tested: NDArray[Any], path: Path) -> None:
    """Refuse to choose on the tested matrix under another name. Raises GuardError."""
    if choice.array is not None and equal_scores(choice.array, tested):
        raise GuardError(
            f"{choice.path} has the same scores as {path}, so choosing on it would bias every re-ranking upwards",
            hint=_ELSE,
        )


def choose_on(choice: ChoiceScores, wanted: str, progress: Progress) -> ChosenParams:
    """The parameters of the wanted re-rankings (see `wanted_stages`), each chosen on the scores it re-ranks."""
    nothing = Available(("cosine",), ChosenParams(split_sha256=choice.split_sha256))
    stages = wanted_stages(wanted, nothing.bases)
    return choose_params(stages, lambda _: choice.scores, choice.caption_image, nothing, progress=progress)


def _are_probabilities(values: Values) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())  # false for NaN too


def _open_for_choosing(workspace: Workspace, run: Run, split: str, what: str) -> EvalSplit:
    require_not_test(split, what)
    tested = open_tested(workspace, run, None, split)
    shared = sum(image in run.seen.train_images for image in tested.split.image_sha256)
    if shared:
        raise GuardError(
            f"choosing {what} on {split} would bias them: {run.root.name} was trained on {shared:,} of its "
            f"{len(tested.split):,} images",
            hint="choose on the run's selection split",
        )
    return tested
