"""GaLR's multivariate re-ranking (Yuan et al. 2022), which needs no training (section 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import UsageError
from cmpagl_core.ranking.rank_stats import RankStats
from cmpagl_core.ranking.scores import Rows, ScoreMatrix
from cmpagl_core.ranking.smr import DECAY
from cmpagl_core.ranking.sums import grid_sum, grid_unit

GALR_K = 30
GALR_SCORE_WEIGHT = 0.3
GALR_BACKWARD_WEIGHT = 1.1


def galr(
    scores: ScoreMatrix,
    k: int = GALR_K,
    score_weight: float = GALR_SCORE_WEIGHT,
    backward_weight: float = GALR_BACKWARD_WEIGHT,
    rank_stats: RankStats | None = None,
) -> ScoreMatrix:
    """w1 S_ij / (sum of column j) + exp(-0.05 f) + w2 exp(-0.05 p) for each query's k candidates, 0 for all others.

    f: position among the query's candidates by score; p: position by backward rank. [ours]: ties share the best
    position, and all ties with the k-th are candidates, so that file order decides nothing; a column that sums to 0
    adds nothing. k is clamped to the gallery. Raises UsageError for a k below 1.
    """
    if k < 1:
        raise UsageError(f"k = {k} must be at least 1")
    known = RankStats.of(scores) if rank_stats is None else rank_stats
    rows, cols, values = candidates(known.scores, k)
    sums = _column_sums(known)[cols]
    share = np.divide(values, sums, out=np.zeros(len(values)), where=sums != 0)
    backward = known.backward_at(rows, cols)
    reranked = (
        score_weight * share
        + np.exp(-DECAY * shared_positions(rows, -values))
        + backward_weight * np.exp(-DECAY * shared_positions(rows, backward))
    )
    return ScoreMatrix.zeros(scores.shape, scores.budget_bytes).with_candidates(rows, cols, reranked)


def candidates(scores: ScoreMatrix, k: int) -> tuple[Rows, Rows, NDArray[Any]]:
    """Every query's k best gallery items, and all ties with the k-th: (rows, cols, scores), sorted by row."""
    gallery = scores.shape[1]
    taken = min(k, gallery)
    parts = []
    for rows, tile in scores.row_tiles():
        bar = np.partition(tile, gallery - taken, axis=1)[:, gallery - taken]
        row, col = np.nonzero(tile >= bar[:, None])
        parts.append((row + rows.start, col, tile[row, col].astype(np.float64)))
    row, col, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    return row, col, value


def shared_positions(groups: Rows, keys: NDArray[Any]) -> Rows:
    """Position of each entry within its group by ascending key; equal keys share the best position."""
    order = np.lexsort((keys, groups))
    group, key = groups[order], keys[order]
    places = np.arange(len(order))
    new_group = np.ones(len(order), bool)
    new_group[1:] = group[1:] != group[:-1]
    new_key = new_group.copy()
    new_key[1:] |= key[1:] != key[:-1]
    start_of_group = np.maximum.accumulate(np.where(new_group, places, 0))
    start_of_key = np.maximum.accumulate(np.where(new_key, places, 0))
    positions = np.empty(len(order), np.int64)
    positions[order] = start_of_key - start_of_group
    return positions


def _column_sums(rank_stats: RankStats) -> NDArray[np.float64]:
    queries, gallery = rank_stats.scores.shape
    unit = grid_unit(max(abs(rank_stats.range.least), abs(rank_stats.range.greatest)), queries)
    sums = np.zeros(gallery)
    for _, tile in rank_stats.scores.row_tiles():
        sums += grid_sum(tile, 0, unit)
    return sums
