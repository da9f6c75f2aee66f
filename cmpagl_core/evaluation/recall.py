"""Recall as its expectation over the order of ties, with both bounds (section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmpagl_core.errors import DataError
from cmpagl_core.ranking.scores import ScoreMatrix

KS = (1, 5, 10)

Counts = NDArray[np.int64]
Probabilities = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Matches:
    """Which gallery items match which queries: distinct pairs, sorted by query."""

    queries: int
    gallery: int
    query: Counts  # [P]
    item: Counts  # [P]

    @classmethod
    def own(cls, caption_image: ArrayLike, images: int) -> Matches:
        """Images as queries, texts as gallery; a caption matches its own image only (`rsitr`).

        caption_image: row of each caption's image. Raises DataError for a row out of range.
        """
        rows = _checked_rows(caption_image, images)
        order = np.argsort(rows, kind="stable")
        return cls(images, len(rows), rows[order], order.astype(np.int64))

    @classmethod
    def identical(cls, caption_image: ArrayLike, images: int, caption_class: ArrayLike) -> Matches:
        """As `own`, but identical captions match too (`duplicate-aware`).

        caption_class: one number per caption, equal for identical captions.
        """
        rows, classes = _checked_rows(caption_image, images), np.asarray(caption_class, np.int64)
        members = _group_by(classes)
        queries, items = [], []
        for captions in members:
            owners = np.unique(rows[captions])
            queries.append(np.repeat(owners, len(captions)))
            items.append(np.tile(captions, len(owners)))
        query, item = np.concatenate(queries), np.concatenate(items)
        order = np.lexsort((item, query))
        return cls(images, len(rows), query[order], item[order])

    def transposed(self) -> Matches:
        """The other direction."""
        order = np.lexsort((self.query, self.item))
        return Matches(self.gallery, self.queries, self.item[order], self.query[order])


@dataclass(frozen=True, eq=False)
class Ranking:
    """The rank of each query's best match, as counts; queries without a match are left out."""

    query: Counts  # [Q] rows of the queries that have a match
    better: Counts  # [Q] gallery items that score strictly higher than the best match
    tied: Counts  # [Q] items that score the same, the match itself included
    tied_matches: Counts  # [Q] how many of those are matches
    gallery: int

    def hits(self, k: int) -> Probabilities:
        """Probability [Q] that a match is among the first k, over all orders of ties.

        With g better, t tied and o matches among these, 1 - C(t - o, k - g) / C(t, k - g).
        """
        free = np.clip(k - self.better, 0, self.tied)
        missed = np.ones(len(self.query))
        for drawn in range(min(k, self.gallery)):
            left = np.maximum(self.tied - self.tied_matches - drawn, 0) / np.maximum(self.tied - drawn, 1)
            missed *= np.where(drawn < free, left, 1.0)
        return 1.0 - missed

    def optimistic(self, k: int) -> Probabilities:
        """1 if some order of ties puts a match among the first k, else 0."""
        return (self.better < k).astype(np.float64)

    def pessimistic(self, k: int) -> Probabilities:
        """1 if every order of ties does, else 0."""
        return (self.better + self.tied - self.tied_matches < k).astype(np.float64)


@dataclass(frozen=True)
class Recalls:
    """Percent at K = 1, 5, 10."""

    r1: float
    r5: float
    r10: float

    @property
    def mean(self) -> float:
        return (self.r1 + self.r5 + self.r10) / 3


@dataclass(frozen=True)
class RecallResult:
    """Expected recalls of both directions, and mR with its bounds, in percent."""

    i2t: Recalls
    t2i: Recalls
    mr: float
    mr_pessimistic: float
    mr_optimistic: float


def rank_queries(scores: ScoreMatrix, matches: Matches) -> Ranking:
    """Count, for each query, the items above its best match and those tied with it.

    scores: [queries, gallery] in the direction of `matches`. Raises DataError if the sizes differ.
    """
    if scores.shape != (matches.queries, matches.gallery):
        raise DataError(
            f"the scores are {scores.shape[0]} x {scores.shape[1]} but the split has {matches.queries} queries "
            f"and {matches.gallery} gallery items"
        )
    query, first = np.unique(matches.query, return_index=True)
    if len(query) == 0:
        return Ranking(query, query, query, query, matches.gallery)
    values = scores.at(matches.query, matches.item)
    best = np.maximum.reduceat(values, first)  # [Q]
    owner = np.repeat(np.arange(len(query)), np.diff(np.append(first, len(values))))
    tied_matches = np.bincount(owner[values == best[owner]], minlength=len(query))
    threshold = np.full(matches.queries, np.inf, values.dtype)
    threshold[query] = best
    better, at_least = np.empty(matches.queries, np.int64), np.empty(matches.queries, np.int64)
    for rows, tile in scores.row_tiles():
        bar = threshold[rows, None]
        better[rows] = np.count_nonzero(tile > bar, axis=1)
        at_least[rows] = np.count_nonzero(tile >= bar, axis=1)
    better, at_least = better[query], at_least[query]
    return Ranking(query, better, at_least - better, tied_matches.astype(np.int64), matches.gallery)


def recalls(ranking: Ranking) -> Recalls:
    """Expected percentage of queries with a hit. Raises DataError if no query has a match."""
    return _percent([ranking.hits(k) for k in KS])


def summarise(i2t: Ranking, t2i: Ranking) -> RecallResult:
    """The six recalls, their mean and its bounds over the orders of ties."""
    forward, backward = recalls(i2t), recalls(t2i)
    low = [_percent([ranking.pessimistic(k) for k in KS]).mean for ranking in (i2t, t2i)]
    high = [_percent([ranking.optimistic(k) for k in KS]).mean for ranking in (i2t, t2i)]
    return RecallResult(forward, backward, (forward.mean + backward.mean) / 2, sum(low) / 2, sum(high) / 2)


def recall(scores: ScoreMatrix, matches: Matches, text_scores: ScoreMatrix | None = None) -> RecallResult:
    """Recall of both directions.

    scores: images x texts. text_scores: texts x images, if a re-ranking has a separate matrix for that direction; else
    the transpose of `scores`. matches: images x texts.
    """
    backward = scores.transposed() if text_scores is None else text_scores
    return summarise(rank_queries(scores, matches), rank_queries(backward, matches.transposed()))


def _percent(hits: Sequence[Probabilities]) -> Recalls:
    if len(hits[0]) == 0:
        raise DataError("no query of this split has a match", hint="evaluate a split that has captions")
    return Recalls(*(float(100.0 * values.mean()) for values in hits))


def _checked_rows(caption_image: ArrayLike, images: int) -> Counts:
    rows: NDArray[Any] = np.asarray(caption_image)
    if rows.ndim != 1 or (len(rows) and (rows.min() < 0 or rows.max() >= images)):
        raise DataError(f"caption_image must hold rows of the {images} images, one per caption")
    return rows.astype(np.int64)


def _group_by(classes: Counts) -> list[Counts]:
    order = np.argsort(classes, kind="stable")
    cuts = np.flatnonzero(np.diff(classes[order])) + 1
    return [np.asarray(part, np.int64) for part in np.split(order, cuts)] if len(order) else []
