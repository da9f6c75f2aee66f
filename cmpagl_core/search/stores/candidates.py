"""Shared by all approximate stores: candidates of another engine are scored and ordered exactly (ours)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.search.stores.exact import ExactStore, Merger
from cmpagl_core.search.stores.store import Store, TopK

OVERSAMPLE = 8  # candidates asked for, for each of the k best
_AT_LEAST = 64
_FEW = 0.05  # share of the rows that pass a filter, below which they are searched exactly


def wanted_candidates(k: int) -> int:
    """Number of candidates to request."""
    return max(OVERSAMPLE * k, _AT_LEAST)


def leaves_few(where: NDArray[np.bool_] | None, k: int) -> bool:
    """Whether a filter [N] leaves so few rows that reading all of them is faster, and exact."""
    return where is not None and (where.mean() < _FEW or int(where.sum()) < OVERSAMPLE * k)


def best_of_candidates(
    exact: ExactStore,
    queries: NDArray[np.float32],
    candidates: NDArray[np.int64],
    k: int,
    where: NDArray[np.bool_] | None,
) -> TopK:
    """The best k of each query among its candidate rows [Q, W] that pass the filter; -1 means no candidate.

    A query with too few candidates is answered exactly.
    """
    count = min(k, len(exact) if where is None else int(where.sum()))
    merger = Merger(exact.features, queries, count, exact.tie_order)
    found = candidates >= 0
    if where is not None:
        found &= where[candidates]
    query, place = np.nonzero(found)
    merger.add_pairs(query, candidates[query, place])
    best = merger.best()
    short = np.flatnonzero((best.rows < 0).any(axis=1))
    if len(short):
        whole = exact.top_k(queries[short], k, where)
        best.scores[short], best.rows[short] = whole.scores, whole.rows
    return best


def measured_recall(store: Store, exact: ExactStore, samples: int = 200, k: int = 10, seed: int = 0) -> float:
    """A store's recall of the exact top k, 0 to 1, for queries near some of its rows."""
    rng = np.random.default_rng(seed)
    near = exact.features[np.sort(rng.integers(0, len(exact), samples))]
    queries = near + rng.standard_normal(near.shape).astype(np.float32) * (0.5 / near.shape[1] ** 0.5)
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    found, expected = store.top_k(queries, k), exact.top_k(queries, k)
    hits = [len(np.intersect1d(one, other)) for one, other in zip(found.rows, expected.rows, strict=True)]
    return float(np.sum(hits) / expected.rows.size)
