"""Validates the current weights on the selection split, and chooses SMR's gammas for the final ones (section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from cmpagl_core.datasets.augment import VIEWS, Tta, view_count
from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.encoders.cached import cached_features
from cmpagl_core.encoders.encode import encode_captions, encode_images
from cmpagl_core.encoders.encoder import Features
from cmpagl_core.encoders.feature_set import unique_texts
from cmpagl_core.evaluation.recall import Matches, Recalls, recall
from cmpagl_core.evaluation.stages import Available, Base
from cmpagl_core.evaluation.tune import SmrGrid, choose_smr
from cmpagl_core.progress import Silent
from cmpagl_core.ranking.itm import ALL_PAIRS, itm_scores
from cmpagl_core.ranking.rerank import ChosenParams, RerankParams
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.ranks import ALONE, Ranks
from cmpagl_core.runs import LoadedModel
from cmpagl_core.training.learner import Learner
from cmpagl_core.training.setup import Plan


@dataclass(frozen=True)
class Validation:
    """Percent, under `rsitr`."""

    mr: float
    i2t: Recalls
    t2i: Recalls


def validate(learner: Learner, plan: Plan, cached: bool) -> Validation:
    """Recalls of the current weights, averaged if an average is kept; collective over the learner's processes.

    Ranked by cosine, or by ITM if no loss aligns the features. cached: whether the backbone's maps come from the
    learner's cache. If they do in every epoch, validation uses the recipe's test-time augmentation; otherwise a
    single view of each image, in every epoch.
    """
    always_cached = plan.is_cached(learner.recipe.train.epochs - 1)
    with evaluated(learner) as loaded:
        views = views_of(learner) if always_cached else 1
        scores = selection_scores(loaded, learner, plan.validated, cached, views, learner.ranks)
    if not learner.ranks.first:
        return _shared(learner.ranks, None)
    result = recall(scores, Matches.own(plan.validated.caption_image, len(plan.validated)))
    return _shared(learner.ranks, Validation(result.mr, result.i2t, result.t2i))


def _shared(ranks: Ranks, found: Validation | None) -> Validation:
    """What rank 0 has found, so that all decide alike."""
    if found is not None and ranks.alone:
        return found
    values = None if found is None else [found.mr, *vars(found.i2t).values(), *vars(found.t2i).values()]
    mr, *recalls = ranks.from_first(values, 7)
    return Validation(mr, Recalls(*recalls[:3]), Recalls(*recalls[3:]))


def choose_gammas(learner: Learner, plan: Plan, cached: bool) -> dict[str, RerankParams]:
    """SMR's gammas for the final model, chosen on the scores that it ranks by; empty if SMR is off."""
    cfg = learner.recipe.evaluate
    if not cfg.smr:
        return {}
    loaded = loaded_model(learner)
    scores = selection_scores(loaded, learner, plan.validated, cached, views_of(learner), ALONE)
    found = choose_smr(scores, plan.validated.caption_image, SmrGrid.of(cfg))
    plain: Base = "cosine" if learner.recipe.losses.pre_alignment else "itm"
    name = Available((plain,), ChosenParams(), ALL_PAIRS).scores_of(plain)
    return {name: found.added_to(RerankParams())}


def views_of(learner: Learner) -> int:
    """Views of the recipe's test-time augmentation."""
    return view_count(learner.recipe.evaluate.tta)


@contextmanager
def evaluated(learner: Learner) -> Iterator[LoadedModel]:
    """The model with averaged weights in evaluation mode inside the block; restored afterwards."""
    averaged = learner.average.applied(learner.model) if learner.average is not None else nullcontext()
    with averaged:
        try:
            yield loaded_model(learner)
        finally:
            learner.model.train()


def loaded_model(learner: Learner) -> LoadedModel:
    """The model as `encoders/` takes it, in evaluation mode."""
    return LoadedModel(learner.model.eval(), learner.tokenizer, learner.recipe, "", learner.device)


def selection_scores(
    loaded: LoadedModel, learner: Learner, selection: DataSplit, cached: bool, views: int, ranks: Ranks
) -> ScoreMatrix:
    """Scores of a split, images x texts: cosines of features averaged over `views` views, or match probabilities.

    Each of `ranks` encodes its part; rank 0 alone computes match probabilities.
    """
    unique, row_of = unique_texts(selection.captions)  # equal texts have equal features, whoever encodes them
    texts = _joined(ranks, len(unique), loaded, lambda part: encode_captions(loaded, unique[part], Silent()))[row_of]
    own = selection if ranks.alone else selection.subset(range(len(selection))[ranks.part(len(selection))])
    images = _joined(ranks, len(selection), loaded, lambda _: image_features(loaded, learner, own, cached, views))
    scores = ScoreMatrix.from_features(images, texts)
    if learner.recipe.losses.pre_alignment or not ranks.first:
        return scores
    return itm_scores(loaded, selection, scores, ALL_PAIRS, Silent())


def image_features(loaded: LoadedModel, learner: Learner, images: DataSplit, cached: bool, views: int) -> Features:
    """Features of a split averaged over `views` views, from cached maps or from files."""
    if not cached:
        kind: Tta = "d4" if views == VIEWS else "none"
        return encode_images(loaded, images.images, Silent(), tta=kind)
    if learner.cache is None:
        raise ValueError("there is no cache to read")
    blocks = cached_features(loaded, learner.cache.source(images), views)
    return np.concatenate([features for _, features in blocks])


def _joined(ranks: Ranks, total: int, loaded: LoadedModel, encode: Callable[[slice], Features]) -> Features:
    """The features of `total` rows [total, D], of which each process encodes its part."""
    part = ranks.part(total)
    empty = np.empty((0, loaded.recipe.losses.embed_dim), dtype=np.float32)
    found = encode(part) if part.start < part.stop else empty
    if ranks.alone:
        return found
    rows: Features = ranks.gather(torch.from_numpy(found).to(loaded.device), ranks.sizes(total)).cpu().numpy()
    return rows
