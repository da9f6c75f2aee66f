"""Exact top-k search: a fast scan finds the candidates, float64 products decide among them (ours).

The scan's rounding is bounded, so no picture that belongs in the top k can be lost by it. The products that decide
are computed row by row, so equal features score equally wherever they stand, and equal scores are ordered by image
id: the order of files never changes a result. Needs NumPy alone: a query starts in a fraction of a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import DataError, MismatchError, UsageError
from cmpagl_core.retrieval.index import GalleryIndex

BUDGET_BYTES = 256 << 20

_UNIT_ROUNDING = 2.0**-24  # of float32, relative
_RESCORED_AT_ONCE = 8192


@dataclass(frozen=True)
class Hit:
    """One retrieved picture. rank counts from 1; score is the cosine with the query."""

    rank: int
    image_id: str
    path: str
    score: float
    captions: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Best:
    """The best k rows of each query: scores float64 [Q, k], falling, and rows int64 [Q, k]."""

    scores: NDArray[np.float64]
    rows: NDArray[np.int64]


def search(index: GalleryIndex, query: NDArray[np.float32], k: int) -> list[Hit]:
    """The k pictures of the gallery nearest to one query [D], the best first."""
    best = top_k(index.image_features, query[None], k, index.tie_order)
    return [
        Hit(rank, index.image_ids[row], index.paths[row], score, tuple(index.captions_of(row)))
        for rank, (score, row) in enumerate(zip(best.scores[0].tolist(), best.rows[0].tolist(), strict=True), start=1)
    ]


def top_k(
    features: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    tie_order: NDArray[np.int64] | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> Best:
    """The exact k largest products of each query [Q, D] with features [N, D] (a memory map is read in blocks).

    tie_order: [N], which of two equal scores comes first; None: the lower row. k is clamped to N.
    Raises UsageError for k < 1, MismatchError for another width, DataError for features that are not finite.
    """
    check_search(features, queries, k)
    count, dim = features.shape
    merger = Merger(features, queries, min(k, count), tie_order)
    block = block_rows(len(queries), dim, budget_bytes)
    slack = scan_error(features[:1], queries)
    for start in range(0, count, block):
        scores = queries @ features[start : start + block].T  # [Q, block]
        merger.add(start, scores, slack)
    return merger.best()


class Merger:
    """Keeps the exact best k of each query while scanned blocks come by."""

    def __init__(
        self,
        features: NDArray[np.float32],
        queries: NDArray[np.float32],
        k: int,
        tie_order: NDArray[np.int64] | None,
    ) -> None:
        self._features = features
        self._queries = queries.astype(np.float64)
        self._k = k
        self._tie_order = tie_order
        self._scores = [np.empty(0)] * len(queries)
        self._rows = [np.empty(0, dtype=np.int64)] * len(queries)

    def floor(self, query: int) -> float:
        """The exact score that a picture must reach to enter the best k of a query."""
        scores = self._scores[query]
        return float(scores[-1]) if len(scores) == self._k else -np.inf

    def add(self, start: int, scores: NDArray[np.float32], slack: NDArray[np.float64]) -> None:
        """Merge a block of scanned scores [Q, block] of the rows from `start` on, each within slack [Q] of exact."""
        if not bool(np.isfinite(scores).all()):
            raise DataError("the gallery or the query holds features that are not finite", hint="make the index again")
        for query in range(len(scores)):
            self.add_rows(query, start + self._candidates(query, scores[query], float(slack[query])))

    def add_rows(self, query: int, rows: NDArray[np.int64]) -> None:
        """Merge candidate rows into a query's best, by their exact scores."""
        for first in range(0, len(rows), _RESCORED_AT_ONCE):
            part = rows[first : first + _RESCORED_AT_ONCE]
            exact = (self._features[part].astype(np.float64) * self._queries[query]).sum(axis=1)
            self._keep(query, np.concatenate([self._scores[query], exact]), np.concatenate([self._rows[query], part]))

    def best(self) -> Best:
        """What has been found."""
        return Best(np.stack(self._scores), np.stack(self._rows))

    def _candidates(self, query: int, scores: NDArray[np.float32], slack: float) -> NDArray[np.int64]:
        floor = self.floor(query) - slack
        if floor == -np.inf and len(scores) > self._k:
            floor = float(np.partition(scores, -self._k)[-self._k]) - 2 * slack
        found: NDArray[np.int64] = np.flatnonzero(scores >= floor)
        return found

    def _keep(self, query: int, scores: NDArray[np.float64], rows: NDArray[np.int64]) -> None:
        ties = rows if self._tie_order is None else self._tie_order[rows]
        order = np.lexsort((ties, -scores))[: self._k]
        self._scores[query] = scores[order]
        self._rows[query] = rows[order]


def scan_error(features: NDArray[Any], queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """How far a float32 product of a unit row with each query can be from exact, [Q]: D roundings of its length."""
    lengths = np.sqrt((queries.astype(np.float64) ** 2).sum(axis=1))
    return np.asarray(2 * features.shape[1] * _UNIT_ROUNDING * np.maximum(lengths, 1e-30), dtype=np.float64)


def check_search(features: NDArray[Any], queries: NDArray[np.float32], k: int) -> None:
    """Refuse a search that cannot be. Raises UsageError, MismatchError or DataError."""
    if k < 1:
        raise UsageError(f"k is {k}", hint="ask for at least 1 picture")
    if len(features) == 0:
        raise DataError("the gallery holds no picture", hint="make one with `cmpagl index DIR`")
    if features.shape[1] != queries.shape[1]:
        raise MismatchError(
            f"the query has {queries.shape[1]} numbers and each picture of the gallery {features.shape[1]}",
            hint="index with the run that encodes the query",
        )


def block_rows(queries: int, dim: int, budget_bytes: int) -> int:
    """How many rows to scan at once, so that their features and scores stay within the budget."""
    return max(1024, budget_bytes // (4 * (dim + 2 * queries)))
