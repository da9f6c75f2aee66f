"""Re-rankings that add an offset to each row and column: CSLS, dual softmax (method, section 4) and Sinkhorn (ours)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import UsageError
from cmpagl_core.ranking.scores import Floats, Rows, ScoreMatrix, ScoreSource
from cmpagl_core.ranking.sums import grid_sum, grid_unit
from cmpagl_core.ranking.tiles import over_rows

TEMPERATURES = (10.0, 20.0, 50.0, 100.0)
CSLS_NEIGHBOURS = 10
SINKHORN_STEPS = 20

Offsets = NDArray[np.float64]


def csls(scores: ScoreMatrix, neighbours: int = CSLS_NEIGHBOURS) -> ScoreMatrix:
    """2 S_ij - mean of row i's greatest - mean of column j's greatest (Conneau et al. 2018); symmetric.

    neighbours: how many of the greatest, clamped to what there is. Raises UsageError below 1.
    """
    if neighbours < 1:
        raise UsageError(f"neighbours = {neighbours} must be at least 1")
    held = scores.held()
    rows, cols = _mean_of_greatest(held, neighbours), _mean_of_greatest(held.transposed(), neighbours)
    return ScoreMatrix(_OffsetSource(held.source, 2.0, rows, cols), scores.budget_bytes)


def dual_softmax(scores: ScoreMatrix, temperature: float) -> ScoreMatrix:
    """The logarithm of softmax of row i times softmax of column j, both at T S; symmetric.

    The logarithm ranks alike and cannot underflow. temperature: T, above 0. Raises UsageError otherwise.
    """
    held = _held_for(scores, temperature)
    rows, cols = _log_sum_exp(held, temperature), _log_sum_exp(held.transposed(), temperature)
    return ScoreMatrix(_OffsetSource(held.source, 2.0 * temperature, rows, cols), scores.budget_bytes)


def sinkhorn(scores: ScoreMatrix, temperature: float, steps: int = SINKHORN_STEPS) -> ScoreMatrix:
    """T S_ij - r_i - c_j, the logarithm of an even match's entropic transport plan (Cuturi 2013) [ours]; symmetric.

    The offsets are such that all rows get the same share of the matches, and so do all columns: every image as many
    texts as every other. Both sides step at once, each half the way (Knight et al. 2014), so that neither comes first;
    half of dual softmax is the first step. temperature: T, above 0. Raises UsageError otherwise, and below one step.
    """
    if steps < 1:
        raise UsageError(f"steps = {steps} must be at least 1")
    held = _held_for(scores, temperature)
    turned = held.transposed()
    rows, cols = np.zeros(held.shape[0]), np.zeros(held.shape[1])
    for _ in range(steps):
        of_rows, of_cols = _log_sum_exp(held, temperature, cols), _log_sum_exp(turned, temperature, rows)
        rows, cols = (rows + of_rows + np.log(len(rows))) / 2, (cols + of_cols + np.log(len(cols))) / 2
    return ScoreMatrix(_OffsetSource(held.source, temperature, rows, cols), scores.budget_bytes)


@dataclass(frozen=True, eq=False)
class _OffsetSource:
    """factor * S_ij - row_offset_i - col_offset_j, in float64."""

    base: ScoreSource
    factor: float
    row_offset: Offsets
    col_offset: Offsets

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape

    def block(self, rows: slice, cols: slice) -> Floats:
        scores = self.base.block(rows, cols)
        moved = np.empty(scores.shape)
        row_offset, col_offset = self.row_offset[rows], self.col_offset[cols]

        def fill(piece: slice) -> None:
            part = scores[piece].astype(np.float64)
            part *= self.factor
            # one offset after the other, the greater first in neither: row and column commute on the transpose
            part -= row_offset[piece, None] + col_offset
            moved[piece] = part

        over_rows(scores.shape[0], scores.shape[1], fill)
        return moved

    def at(self, rows: Rows, cols: Rows) -> Floats:
        scores = self.base.at(rows, cols).astype(np.float64) * self.factor
        return np.asarray(scores - (self.row_offset[rows] + self.col_offset[cols]))

    def transposed(self) -> _OffsetSource:
        return _OffsetSource(self.base.transposed(), self.factor, self.col_offset, self.row_offset)


def _mean_of_greatest(scores: ScoreMatrix, count: int) -> Offsets:
    queries, gallery = scores.shape
    taken = min(count, gallery)
    means = np.empty(queries)
    for rows, tile in scores.row_tiles():
        greatest = np.partition(tile, gallery - taken, axis=1)[:, gallery - taken :]
        # sorted, so that the sum does not depend on where in the gallery they stood
        means[rows] = np.sort(greatest, axis=1).astype(np.float64).sum(axis=1) / taken
    return means


def _held_for(scores: ScoreMatrix, temperature: float) -> ScoreMatrix:
    if not (np.isfinite(temperature) and temperature > 0):
        raise UsageError(f"temperature = {temperature} must be a finite number above 0")
    return scores.held()


def _log_sum_exp(scores: ScoreMatrix, temperature: float, offsets: Offsets | None = None) -> Offsets:
    """log sum_j exp(T S_ij - offset_j) of each row i. offsets: [gallery], 0 where there are none."""
    queries, gallery = scores.shape
    taken = np.zeros(gallery) if offsets is None else offsets
    unit = grid_unit(1.0, gallery)
    totals = np.empty(queries)
    for rows, tile in scores.row_tiles():
        part = totals[rows]

        def fill(piece: slice, tile: Floats = tile, part: Offsets = part) -> None:
            shares = tile[piece] * np.float64(temperature) - taken
            top = shares.max(axis=1)
            shares -= top[:, None]
            np.exp(shares, out=shares)
            part[piece] = top + np.log(grid_sum(shares, 1, unit))

        over_rows(tile.shape[0], gallery, fill)
    return totals
