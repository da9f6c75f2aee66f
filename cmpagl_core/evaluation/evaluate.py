"""From a run, a feature set or anybody's score matrix to a RetrievalReport (method, section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cmpagl_core import __version__
from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.errors import DataError, MismatchError, UsageError
from cmpagl_core.evaluation.protocol import Overlap, Protocol, Stamp, matches_of
from cmpagl_core.evaluation.result import Queries, RetrievalReport
from cmpagl_core.evaluation.stages import Available, Base, plan_stages, score_stages
from cmpagl_core.features.export import run_features
from cmpagl_core.features.feature_set import FeatureSet
from cmpagl_core.progress import Progress
from cmpagl_core.recipe import Recipe
from cmpagl_core.retrieval.itm import ALL_PAIRS, itm_scores
from cmpagl_core.retrieval.rerank.chain import Gammas, Tuned
from cmpagl_core.retrieval.scores import ScoreMatrix
from cmpagl_core.runs import LoadedModel, Run

_ARCHIVE = b"PK"


@dataclass(frozen=True)
class EvaluateOptions:
    """What to show and how; `rerank` is explained at `plan_stages`."""

    protocol: Protocol = "rsitr"
    rerank: str = "default"
    itm_k: int | None = None  # None: the recipe's
    samples: int = 1000  # of the bootstrap
    seed: int = 0  # of the bootstrap


@dataclass(frozen=True)
class Tested:
    """Who is asked what: the part of a split, or of a feature set, that evaluation needs."""

    dataset: str
    split: str
    split_sha256: str
    manifest_sha256: str
    image_ids: tuple[str, ...]
    captions: tuple[str, ...]
    caption_image: NDArray[np.int64]

    @classmethod
    def of(cls, split: DataSplit, manifest_sha256: str) -> Tested:
        return cls(
            split.dataset,
            split.name,
            split.sha256,
            manifest_sha256,
            split.image_ids,
            split.captions,
            split.caption_image,
        )


def evaluate_run(
    run: Run,
    split: DataSplit,
    progress: Progress,
    device: torch.device,
    options: EvaluateOptions | None = None,
    manifest_sha256: str = "",
    overlap: Overlap | None = None,
    tuned: Tuned | None = None,
) -> RetrievalReport:
    """Encode a split with a run's model and evaluate every stage that it offers.

    manifest_sha256: of the prepared data set that the split is of. overlap: with the training pictures, where known.
    tuned: the run's own choice when None. Raises DataError for a picture that cannot be read, MismatchError for
    weights that are not the run's.
    """
    return evaluate_model(
        run.load(device), run, split, progress, options or EvaluateOptions(), manifest_sha256, overlap, tuned
    )


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
    """As `evaluate_run`, with the run's model already loaded."""
    aligned = is_pre_aligned(run.recipe)
    k = ALL_PAIRS if not aligned else run.recipe.evaluate.itm_k if options.itm_k is None else options.itm_k
    with_itm = loaded.model.itm_head is not None and (k > 0 or not aligned)
    bases: tuple[Base, ...] = (*(("cosine",) if aligned else ()), *(("itm",) if with_itm else ()))
    available = Available(bases, tuned_of(run) if tuned is None else tuned)
    features = run_features(loaded, run.root.name, split, progress, manifest_sha256)
    cosines = ScoreMatrix.from_features(features.image_features, features.text_features).held()

    def scores(base: Base) -> ScoreMatrix:
        return itm_scores(loaded, split, cosines, k, progress) if base == "itm" else cosines

    return _report(
        Tested.of(split, manifest_sha256),
        scores,
        available,
        options,
        _Model(run.root.name, loaded.sha256, k if with_itm else None, overlap),
    )


def evaluate_features(
    features: FeatureSet, options: EvaluateOptions | None = None, tuned: Tuned | None = None
) -> RetrievalReport:
    """Evaluate any model's features. tuned: parameters chosen on another split, where there are any.

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
    model = _Model(info.model, info.model_sha256)
    return _report(tested, lambda _: scores, _cosine_only(tuned), options or EvaluateOptions(), model)


def evaluate_scores(
    array: NDArray[Any],
    split: DataSplit,
    options: EvaluateOptions | None = None,
    manifest_sha256: str = "",
    model: str = "scores",
    model_sha256: str = "",
    tuned: Tuned | None = None,
) -> RetrievalReport:
    """Evaluate anybody's scores of a split's images x captions, in the order of the prepared set.

    The plain ranking's stage is called `cosine` here too. Raises MismatchError for another shape, DataError for
    values that are no scores.
    """
    scores = ScoreMatrix.from_array(array)
    require_shape(scores, split, model)
    return _report(
        Tested.of(split, manifest_sha256),
        lambda _: scores,
        _cosine_only(tuned),
        options or EvaluateOptions(),
        _Model(model, model_sha256),
    )


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
    return Tuned(gammas, run.info.dual_softmax)


def is_pre_aligned(recipe: Recipe) -> bool:
    """Whether cosines mean anything: some loss aligned the features before fusion."""
    return recipe.losses.uses_itc or recipe.losses.uses_triplet


@dataclass(frozen=True)
class _Model:
    """What made the scores."""

    name: str
    sha256: str
    itm_k: int | None = None
    overlap: Overlap | None = None


def _cosine_only(tuned: Tuned | None) -> Available:
    return Available(("cosine",), Tuned() if tuned is None else tuned)


def _report(
    tested: Tested, scores: Any, available: Available, options: EvaluateOptions, model: _Model
) -> RetrievalReport:
    if options.samples < 1:
        raise UsageError(f"samples = {options.samples} must be at least 1")
    stages, notes = plan_stages(options.rerank, available)
    matches = matches_of(options.protocol, tested.caption_image, len(tested.image_ids), tested.captions)
    rows, queries = score_stages(
        stages,
        scores,
        available.tuned,
        matches,
        Queries(tested.image_ids, tested.caption_image),
        options.samples,
        options.seed,
    )
    used = {name for stage in stages for name in stage.chain}
    stamp = Stamp(
        protocol=options.protocol,
        dataset=tested.dataset,
        split=tested.split,
        split_sha256=tested.split_sha256,
        manifest_sha256=tested.manifest_sha256,
        images=len(tested.image_ids),
        captions=len(tested.captions),
        model=model.name,
        model_sha256=model.sha256,
        stages=tuple(row.stage for row in rows),
        smr=available.tuned.smr if "smr" in used else None,
        dual_softmax=available.tuned.dual_softmax if "dual_softmax" in used else None,
        itm_k=model.itm_k if any(stage.base == "itm" for stage in stages) else None,
        overlap=model.overlap,
        code=__version__,
    )
    if model.overlap is not None:
        notes = (*notes, model.overlap.sentence())
    return RetrievalReport(stamp, rows, queries, notes)
