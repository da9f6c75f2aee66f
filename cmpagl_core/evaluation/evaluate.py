"""From a run, a feature set or anybody's score matrix to a RetrievalReport (method, section 5)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.encoders.export import run_features
from cmpagl_core.encoders.feature_set import FeatureSet
from cmpagl_core.errors import DataError, MismatchError
from cmpagl_core.evaluation.protocol import Overlap, read_overlap
from cmpagl_core.evaluation.result import RetrievalReport
from cmpagl_core.evaluation.scored import EvaluateOptions, Scored, ScoredModel, Tested
from cmpagl_core.evaluation.stages import Available, Base
from cmpagl_core.progress import Progress
from cmpagl_core.ranking.chain import Gammas, Tuned
from cmpagl_core.ranking.itm import ALL_PAIRS, itm_scores
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.recipe import Recipe
from cmpagl_core.runs import LoadedModel, Run

_ARCHIVE = b"PK"


def evaluate_model(
    loaded: LoadedModel,
    run: Run,
    split: DataSplit,
    progress: Progress,
    options: EvaluateOptions,
    manifest_sha256: str = "",
    overlap: Overlap | None = None,
    tuned: Tuned | None = None,
) -> RetrievalReport:
    """Encode a split with a run's model and evaluate every stage that it offers.

    manifest_sha256: of the prepared data set that the split is of. overlap: with the training pictures, where known.
    tuned: the run's own choice when None. Raises DataError for a picture that cannot be read.
    """
    return model_scores(loaded, run, split, progress, options, manifest_sha256, overlap, tuned).report(options)


def model_scores(
    loaded: LoadedModel,
    run: Run,
    split: DataSplit,
    progress: Progress,
    options: EvaluateOptions,
    manifest_sha256: str = "",
    overlap: Overlap | None = None,
    tuned: Tuned | None = None,
) -> Scored:
    """What `evaluate_model` evaluates, for several protocols: the split is encoded now, pairs are matched on demand."""
    aligned = is_pre_aligned(run.recipe)
    k = ALL_PAIRS if not aligned else run.recipe.evaluate.itm_k if options.itm_k is None else options.itm_k
    with_itm = loaded.model.itm_head is not None and (k > 0 or not aligned)
    bases: tuple[Base, ...] = (*(("cosine",) if aligned else ()), *(("itm",) if with_itm else ()))
    available = Available(bases, tuned_of(run) if tuned is None else tuned)
    features = run_features(loaded, run.root.name, split, progress, manifest_sha256)
    cosines = ScoreMatrix.from_features(features.image_features, features.text_features).held()

    def scores(base: Base) -> ScoreMatrix:
        return itm_scores(loaded, split, cosines, k, progress) if base == "itm" else cosines

    chosen_here = bool(split.sha256) and split.sha256 == run.info.selection_sha256
    model = ScoredModel(run.root.name, loaded.sha256, k if with_itm else None, overlap, chosen_here)
    return Scored(Tested.of(split, manifest_sha256), cache(scores), available, model)


def feature_scores(features: FeatureSet, tuned: Tuned | None = None) -> Scored:
    """Any model's features, to be evaluated. tuned: parameters chosen on another split, where there are any.

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
    return Scored(tested, lambda _: scores, _cosine_only(tuned), model)


def matrix_scores(
    array: NDArray[Any],
    split: DataSplit,
    manifest_sha256: str = "",
    model: str = "scores",
    model_sha256: str = "",
    tuned: Tuned | None = None,
) -> Scored:
    """Anybody's scores of a split's images x captions, in the order of the prepared set, to be evaluated.

    The plain ranking's stage is called `cosine` here too. Raises MismatchError for another shape, DataError for
    values that are no scores.
    """
    scores = ScoreMatrix.from_array(array)
    require_shape(scores, split, model)
    tested = Tested.of(split, manifest_sha256)
    return Scored(tested, lambda _: scores, _cosine_only(tuned), ScoredModel(model, model_sha256))


def open_scores(path: Path) -> NDArray[Any]:
    """Map a `.npy` file of scores; nothing in it is ever executed. Raises DataError in one sentence."""
    hint = "save it with numpy.save as a float32 matrix of images x captions"
    try:
        with path.open("rb") as stream:
            archive = stream.read(len(_ARCHIVE)) == _ARCHIVE
        if archive:
            raise DataError(f"{path} is an archive of several arrays, not one .npy matrix", hint=hint)
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, ValueError, EOFError, OverflowError, MemoryError) as error:
        raise DataError(f"{path} is not a .npy file of plain numbers", hint=hint) from error
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise DataError(f"{path} holds {array.dtype} of shape {array.shape}, not a matrix of numbers", hint=hint)
    return array


def require_shape(scores: ScoreMatrix, split: DataSplit, name: str) -> None:
    """Raises MismatchError unless the scores are those of the split's images x captions."""
    expected = len(split), len(split.captions)
    if scores.shape != expected:
        turned = " (it looks transposed)" if scores.shape == expected[::-1] else ""
        raise MismatchError(
            f"{name} is {scores.shape[0]:,} x {scores.shape[1]:,}{turned}, but the {split.name} split of "
            f"{split.dataset} has {expected[0]:,} images x {expected[1]:,} captions",
            hint="score that split, in the order of its images.csv and captions.csv",
        )


def tuned_of(run: Run) -> Tuned:
    """The parameters that a run chose on its selection split."""
    chosen = run.info.smr if run.recipe.evaluate.smr else None
    gammas = None if chosen is None else Gammas(chosen.form, chosen.gamma1, chosen.gamma2)
    return Tuned(gammas, run.info.dual_softmax, run.info.sinkhorn)


def is_pre_aligned(recipe: Recipe) -> bool:
    """Whether cosines mean anything: some loss aligned the features before fusion."""
    return recipe.losses.uses_itc or recipe.losses.uses_triplet


def _cosine_only(tuned: Tuned | None) -> Available:
    return Available(("cosine",), Tuned() if tuned is None else tuned)
