"""From a run, a feature set or anybody's score matrix to a RetrievalReport (method, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numpy.typing import NDArray

from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.encoders.export import run_features
from cmpagl_core.encoders.feature_set import FeatureSet
from cmpagl_core.errors import DataError
from cmpagl_core.evaluation.kept_params import read_params
from cmpagl_core.evaluation.protocol import Overlap, find_overlap, read_overlap
from cmpagl_core.evaluation.result import RetrievalReport
from cmpagl_core.evaluation.score_files import require_shape
from cmpagl_core.evaluation.scored import EvaluateOptions, Scored, ScoredModel, Tested
from cmpagl_core.evaluation.stages import Available, Base
from cmpagl_core.progress import Progress
from cmpagl_core.ranking.chain import ChosenParams
from cmpagl_core.ranking.itm import ALL_PAIRS, itm_scores
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.runs import LoadedModel, Run


def evaluate_model(
    loaded: LoadedModel,
    run: Run,
    split: DataSplit,
    progress: Progress,
    options: EvaluateOptions,
    manifest_sha256: str = "",
    params: ChosenParams | None = None,
) -> RetrievalReport:
    """Encode a split with a run's model and evaluate every stage that it offers.

    manifest_sha256: of the prepared data set that the split is of. params: of re-rankings; those that the run keeps
    when None. What the split shares with what the run was trained and chosen on is stamped. Raises DataError for a
    picture that cannot be read.
    """
    return model_scores(loaded, run, split, progress, options, manifest_sha256, params).report(options)


def model_scores(
    loaded: LoadedModel,
    run: Run,
    split: DataSplit,
    progress: Progress,
    options: EvaluateOptions,
    manifest_sha256: str = "",
    params: ChosenParams | None = None,
) -> Scored:
    """What `evaluate_model` evaluates, for several protocols: the split is encoded now, pairs are matched on demand."""
    available = offered(loaded, run, options.itm_k, read_params(run, progress) if params is None else params)
    scores = split_scores(loaded, run, split, available, progress, manifest_sha256)
    overlap = find_overlap(run.seen, run.info.dataset, split)
    model = ScoredModel(run.root.name, loaded.sha256, overlap)
    return Scored(Tested.of(split, manifest_sha256), scores, available, model)


def offered(loaded: LoadedModel, run: Run, itm_k: int | None, params: ChosenParams) -> Available:
    """What a run's model can be evaluated by. itm_k: candidates of ITM; the recipe's when None."""
    aligned, cfg = run.recipe.losses.aligns_features, run.recipe.evaluate
    k = ALL_PAIRS if not aligned else cfg.itm_k if itm_k is None else itm_k
    with_itm = loaded.model.itm_head is not None and (k > 0 or not aligned)
    bases: tuple[Base, ...] = (*(("cosine",) if aligned else ()), *(("itm",) if with_itm else ()))
    return Available(bases, params, k if with_itm else None, cfg.smr)


def split_scores(
    loaded: LoadedModel, run: Run, split: DataSplit, available: Available, progress: Progress, manifest_sha256: str = ""
) -> Callable[[Base], ScoreMatrix]:
    """Scores of a split's images x texts, by what they are called; the split is encoded now, pairs are matched once."""
    features = run_features(loaded, run.root.name, split, progress, manifest_sha256)
    cosines = ScoreMatrix.from_features(features.image_features, features.text_features).held()

    def scores(base: Base) -> ScoreMatrix:
        if base == "cosine":
            return cosines
        return itm_scores(loaded, split, cosines, available.itm_k or ALL_PAIRS, progress)

    return cache(scores)


def feature_scores(features: FeatureSet, params: ChosenParams | None = None) -> Scored:
    """Any model's features, to be evaluated. params: chosen on another split, where there are any.

    Raises DataError for a feature set without captions.
    """
    if not features.captions:
        raise DataError("this feature set holds no captions, so there is nothing to ask")
    info = features.info
    tested = Tested(
        info.dataset,
        info.split,
        info.split_sha256,
        info.manifest_sha256,
        features.image_ids,
        features.captions,
        features.text_image,
    )
    scores = ScoreMatrix.from_features(features.image_features, features.text_features)
    model = ScoredModel(info.model, info.model_sha256, overlap=read_overlap(info.overlap))
    return Scored(tested, lambda _: scores, cosine_only(params), model)


def matrix_scores(
    array: NDArray[Any],
    split: DataSplit,
    manifest_sha256: str = "",
    model: str = "scores",
    model_sha256: str = "",
    params: ChosenParams | None = None,
    overlap: Overlap | None = None,
) -> Scored:
    """Anybody's scores of a split's images x captions, in the order of the prepared set, to be evaluated.

    The plain ranking's stage is called `cosine` here too. overlap: with what the model has seen, where known. Raises
    MismatchError for another shape, DataError for values that are no scores.
    """
    scores = ScoreMatrix.from_array(array)
    require_shape(scores, split, model)
    tested = Tested.of(split, manifest_sha256)
    return Scored(tested, lambda _: scores, cosine_only(params), ScoredModel(model, model_sha256, overlap))


def cosine_only(params: ChosenParams | None = None) -> Available:
    """What features and score files of anybody offer: one plain ranking, which is called `cosine`."""
    return Available(("cosine",), ChosenParams() if params is None else params)
