"""Exact top-k search: a fast float32 scan finds candidates, float64 products rank them (ours).

The scan's rounding error is bounded, so it cannot lose an image of the top k. The final products are computed row by
row, so equal features have equal scores wherever they are, and ties are ordered by image id: file order never changes
a result. Needs only NumPy, so a query starts in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import DataError, MismatchError, UsageError
from cmpagl_core.search.stores.store import TopK

BUDGET_BYTES = 32 << 20  # larger blocks of scores do not fit the caches and are slower

_UNIT_ROUNDING = 2.0**-24  # of float32, relative
_FIRST_BLOCK = 4096


class ExactStore:
    """Unchanged features, float32 [N, D], possibly memory-mapped. tie_order: as in `top_k`."""

    def __init__(self, features: NDArray[np.float32], tie_order: NDArray[np.int64] | None = None) -> None:
        self.features, self.tie_order = features, tie_order

    def __len__(self) -> int:
        return len(self.features)

    def top_k(self, queries: NDArray[np.float32], k: int, where: NDArray[np.bool_] | None = None) -> TopK:
        """As in `Store`."""
        return top_k(self.features, queries, k, self.tie_order, where=where)


def top_k(
    features: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    tie_order: NDArray[np.int64] | None = None,
    budget_bytes: int = BUDGET_BYTES,
    where: NDArray[np.bool_] | None = None,
) -> TopK:
    """The exact k largest products of each query [Q, D] with features [N, D] (a memory map is read in blocks).

    tie_order: [N], which of two equal scores comes first; None: the lower row. where: [N], the rows that may be found.
    k is clamped to their number. Raises UsageError for k < 1, MismatchError for another width, DataError for features
    that are not finite.
    """
    check_search(features, queries, k)
    allowed = None if where is None else np.flatnonzero(where)
    count = len(features) if allowed is None else len(allowed)
    merger = Merger(features, queries, min(k, count), tie_order, budget_bytes)
    error = scan_error(features.shape[1], queries)
    for start, stop in blocks(count, k, block_rows(len(queries), features.shape[1], budget_bytes)):
        rows = np.arange(start, stop) if allowed is None else allowed[start:stop]
        block = features[start:stop] if allowed is None else features[rows]
        merger.add_block(rows, queries @ block.T, error)  # [Q, block]
    return merger.best()


class Merger:
    """Keeps the exact best k of each query during a scan."""

    def __init__(
        self,
        features: NDArray[np.float32],
        queries: NDArray[np.float32],
        k: int,
        tie_order: NDArray[np.int64] | None,
        budget_bytes: int = BUDGET_BYTES,
    ) -> None:
        self._features, self._tie_order = features, tie_order
        self._queries = queries.astype(np.float64)
        self._scores = np.full((len(queries), k), -np.inf)
        self._rows = np.full((len(queries), k), -1, dtype=np.int64)
        self._pairs_at_once = max(256, budget_bytes // (32 * features.shape[1]))

    @property
    def floors(self) -> NDArray[np.float64]:
        """The exact score [Q] that a row needs to enter a query's best k; -inf until there are k rows."""
        return np.array(self._scores[:, -1])

    def add_block(self, rows: NDArray[np.int64], scores: NDArray[np.float32], error: NDArray[np.float64]) -> None:
        """Merge scanned scores [Q, block] of some rows [block], each within `error` [Q] of exact."""
        if not bool(np.isfinite(scores).all()):
            raise DataError("the gallery or the query has features that are not finite", hint="rebuild the index")
        k = self._scores.shape[1]
        floors = self.floors - error
        if scores.shape[1] > k and not bool(np.isfinite(floors).all()):
            floors = np.maximum(floors, np.partition(scores, -k, axis=1)[:, -k] - 2 * error)
        query, column = np.nonzero(scores >= floors.astype(np.float32)[:, None])
        self.add_pairs(query, rows[column])

    def add_pairs(self, query: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Merge rows, each for one query, by their exact scores."""
        exact = np.empty(len(rows))
        for first in range(0, len(rows), self._pairs_at_once):
            part = slice(first, first + self._pairs_at_once)
            # row by row, not as a matrix product, whose rounding depends on a row's position
            exact[part] = (self._features[rows[part]].astype(np.float64) * self._queries[query[part]]).sum(axis=1)
        if len(rows):
            self._keep(query, rows, exact)

    def best(self) -> TopK:
        """The result so far."""
        return TopK(self._scores.copy(), self._rows.copy())

    def _keep(self, query: NDArray[np.int64], rows: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        queries, k = self._scores.shape
        query = np.concatenate([np.repeat(np.arange(queries), k), query])
        rows = np.concatenate([self._rows.ravel(), rows])
        scores = np.concatenate([self._scores.ravel(), scores])
        ties = rows if self._tie_order is None else np.where(rows < 0, -1, self._tie_order[rows])
        order = np.lexsort((ties, -scores, query))
        starts = np.searchsorted(query[order], np.arange(queries))
        kept = order[starts[:, None] + np.arange(k)]  # [Q, k]; each query has its k old rows at least
        self._scores, self._rows = scores[kept], rows[kept]


def blocks(count: int, k: int, rows: int) -> Iterator[tuple[int, int]]:
    """Cut `count` rows into blocks, a short one first, so that the others can be compared with a floor."""
    start = 0
    stop = min(count, rows, max(4 * k, _FIRST_BLOCK))
    while start < count:
        yield start, stop
        start, stop = stop, min(count, stop + rows)


def scan_error(dim: int, queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """Error bound of a float32 product of a unit row with each query, [Q]: D roundings of its norm."""
    lengths = np.sqrt((queries.astype(np.float64) ** 2).sum(axis=1))
    return np.asarray(2 * dim * _UNIT_ROUNDING * np.maximum(lengths, 1e-30), dtype=np.float64)


def check_search(features: NDArray[Any], queries: NDArray[np.float32], k: int) -> None:
    """Refuse an invalid search. Raises UsageError, MismatchError or DataError."""
    if k < 1:
        raise UsageError(f"k is {k}", hint="ask for at least 1 image")
    if len(features) == 0:
        raise DataError("the gallery has no images", hint="build one with `cmpagl index DIR`")
    if features.shape[1] != queries.shape[1]:
        raise MismatchError(
            f"the query has {queries.shape[1]} dimensions and the gallery {features.shape[1]}",
            hint="index with the run that encodes the query",
        )


def block_rows(queries: int, dim: int, budget_bytes: int) -> int:
    """Number of rows to scan at once, so that their features and scores stay within the budget."""
    return max(1024, budget_bytes // (4 * (dim + 2 * queries)))
