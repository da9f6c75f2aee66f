"""Sampling noise: bootstrap intervals and paired randomisation tests over query images (section 5).

The unit is the image: it is resampled with all its captions, and the gallery stays fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import MismatchError

METRICS = ("i2t.r1", "i2t.r5", "i2t.r10", "t2i.r1", "t2i.r5", "t2i.r10", "mr")

Values = NDArray[np.float64]

_SAMPLES_AT_ONCE = 100
_EQUAL_DELTA = 1e-9  # percent; sums of the same terms in another order


@dataclass(frozen=True, eq=False)
class PerImage:
    """Contribution of each of N query images with captions, sorted by id, to the six recalls."""

    image_ids: tuple[str, ...]
    hits: Values  # [N, 6] sums of hit probabilities over the image's queries, i2t then t2i
    queries: Values  # [N, 2] how many queries, i2t (1) and t2i (its captions)

    @classmethod
    def of(
        cls, image_ids: Sequence[str], i2t_hits: Values, t2i_hits: Values, caption_image: NDArray[np.int64]
    ) -> PerImage:
        """i2t_hits [images, 3], NaN for an image without captions; t2i_hits [captions, 3]."""
        captions = np.bincount(caption_image, minlength=len(image_ids))
        t2i = np.zeros((len(image_ids), 3))
        np.add.at(t2i, caption_image, t2i_hits)
        rows = sorted(np.flatnonzero(captions).tolist(), key=lambda row: image_ids[row])
        return cls(
            tuple(image_ids[row] for row in rows),
            np.concatenate([i2t_hits, t2i], axis=1)[rows],
            np.stack([captions > 0, captions], axis=1).astype(np.float64)[rows],
        )

    def metrics(self, weights: Values | None = None) -> Values:
        """The seven METRICS in percent; weights [S, N] (how often an image was drawn) give [S, 7]."""
        drawn = np.ones((1, len(self.image_ids))) if weights is None else weights
        found = 100.0 * (drawn @ self.hits) / np.repeat(drawn @ self.queries, 3, axis=1)
        all_seven = np.concatenate([found, found.mean(axis=1, keepdims=True)], axis=1)
        return all_seven[0] if weights is None else all_seven


@dataclass(frozen=True)
class Comparison:
    """One metric of two sides in percent, `b` minus `a`; p after Holm's correction over all metrics in p_holm."""

    metric: str
    a: float
    b: float
    delta: float
    ci95: tuple[float, float]
    p: float
    p_holm: float
    a_std: float | None  # over seeds; None with one run
    b_std: float | None


def bootstrap(results: PerImage, samples: int = 1000, seed: int = 0) -> Values:
    """95 % percentile intervals of the seven METRICS: [7, 2] in percent."""
    drawn = [results.metrics(weights) for weights in resamples(len(results.image_ids), samples, seed)]
    return np.quantile(np.concatenate(drawn), [0.025, 0.975], axis=0).T


def compare(
    a: Sequence[PerImage], b: Sequence[PerImage], permutations: int = 10_000, samples: int = 1000, seed: int = 0
) -> tuple[Comparison, ...]:
    """Paired comparison of two sides; several seeds of a side are averaged per image.

    Two-sided randomisation test: each image's results are swapped or not. A run against itself gives p = 1.
    Raises MismatchError unless all have the same images with the same numbers of captions.
    """
    left, right = _average(a), _average(b)
    if left.image_ids != right.image_ids or not np.array_equal(left.queries, right.queries):
        raise MismatchError("the two results are not of the same images and captions, so they cannot be paired")
    p = _randomisation_p(left, right, permutations, seed)
    deltas = [right.metrics(weights) - left.metrics(weights)
              for weights in resamples(len(left.image_ids), samples, seed)]  # fmt: skip
    intervals = np.quantile(np.concatenate(deltas), [0.025, 0.975], axis=0).T
    first, second, corrected = left.metrics(), right.metrics(), holm(p)
    spreads = _spread(a), _spread(b)
    return tuple(
        Comparison(
            metric=name,
            a=float(first[place]),
            b=float(second[place]),
            delta=float(second[place] - first[place]),
            ci95=(float(intervals[place, 0]), float(intervals[place, 1])),
            p=float(p[place]),
            p_holm=float(corrected[place]),
            a_std=None if spreads[0] is None else float(spreads[0][place]),
            b_std=None if spreads[1] is None else float(spreads[1][place]),
        )
        for place, name in enumerate(METRICS)
    )


def holm(p: Values) -> Values:
    """Holm's step-down correction (1979): the r-th smallest of m times m - r + 1, never falling, at most 1."""
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1.0)
    return corrected


def _randomisation_p(left: PerImage, right: PerImage, permutations: int, seed: int) -> Values:
    """(1 + permutations with at least as large a difference) / (1 + permutations), for each metric [7]."""
    six = 100.0 * (right.hits - left.hits) / np.repeat(left.queries.sum(axis=0), 3)
    shares = np.concatenate([six, six.mean(axis=1, keepdims=True)], axis=1)  # [N, 7], sum to the differences
    bar = np.abs(shares.sum(axis=0)) - _EQUAL_DELTA
    rng = np.random.default_rng(seed)
    as_great = np.zeros(len(METRICS))
    for start in range(0, permutations, _SAMPLES_AT_ONCE):
        count = min(_SAMPLES_AT_ONCE, permutations - start)
        signs = 2.0 * rng.integers(0, 2, (count, len(shares))) - 1.0
        as_great += (np.abs(signs @ shares) >= bar).sum(axis=0)
    return (1 + as_great) / (1 + permutations)


def _average(runs: Sequence[PerImage]) -> PerImage:
    first = runs[0]
    for other in runs[1:]:
        if other.image_ids != first.image_ids or not np.array_equal(other.queries, first.queries):
            raise MismatchError("the seeds of one side are not of the same images and captions")
    return PerImage(first.image_ids, np.mean([run.hits for run in runs], axis=0), first.queries)


def _spread(runs: Sequence[PerImage]) -> Values | None:
    if len(runs) < 2:
        return None
    spread: Values = np.std([run.metrics() for run in runs], axis=0, ddof=1)
    return spread


def resamples(images: int, samples: int, seed: int) -> list[Values]:
    """How often each image was drawn: pieces of [samples, images]."""
    rng = np.random.default_rng(seed)
    pieces = []
    for start in range(0, samples, _SAMPLES_AT_ONCE):
        count = min(_SAMPLES_AT_ONCE, samples - start)
        pieces.append(rng.multinomial(images, np.full(images, 1 / images), size=count).astype(np.float64))
    return pieces
