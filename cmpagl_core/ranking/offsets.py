"""Re-rankings that subtract an offset per row and column: CSLS, dual softmax (section 4) and Sinkhorn (ours)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import UsageError
from cmpagl_core.ranking.matrix_tiles import over_rows
from cmpagl_core.ranking.scores import Floats, Rows, ScoreMatrix, ScoreSource
from cmpagl_core.ranking.sums import grid_sum, grid_unit

TEMPERATURES = (10.0, 20.0, 50.0, 100.0)
CSLS_NEIGHBOURS = 10
SINKHORN_TOLERANCE = 1e-3  # largest relative error of a marginal
SINKHORN_SWEEPS = 1000  # at most
_SWEEPS_AN_ESTIMATE = 6  # of how fast shares settle

Offsets = NDArray[np.float64]


def csls(scores: ScoreMatrix, neighbours: int = CSLS_NEIGHBOURS) -> ScoreMatrix:
    """2 S_ij - mean of row i's greatest - mean of column j's greatest (Conneau et al. 2018); symmetric.

    neighbours: number of greatest scores in each mean, clamped to the size. Raises UsageError below 1.
    """
    if neighbours < 1:
        raise UsageError(f"neighbours = {neighbours} must be at least 1")
    held = scores.in_memory()
    rows, cols = mean_of_greatest(held, neighbours), mean_of_greatest(held.transposed(), neighbours)
    return ScoreMatrix(_OffsetSource(held.source, 2.0, rows, cols), scores.budget_bytes)


def dual_softmax(scores: ScoreMatrix, temperature: float) -> ScoreMatrix:
    """The logarithm of softmax of row i times softmax of column j, both at T S; symmetric.

    The logarithm gives the same ranking and cannot underflow. temperature: T, above 0. Raises UsageError otherwise.
    """
    held = _held_for(scores, temperature)
    rows, cols = log_sum_exp(held, temperature), log_sum_exp(held.transposed(), temperature)
    return ScoreMatrix(_OffsetSource(held.source, 2.0 * temperature, rows, cols), scores.budget_bytes)


def sinkhorn(scores: ScoreMatrix, temperature: float, tolerance: float = SINKHORN_TOLERANCE) -> ScoreMatrix:
    """T S_ij - r_i - c_j: log of the entropic optimal transport plan with uniform marginals (Cuturi 2013) [ours].

    A balanced assignment: each image gets the same total mass, and so does each text. Symmetric in both directions, up
    to the tolerance for a square matrix. temperature: T, above 0. tolerance: largest relative error of a marginal;
    iteration stops there, or after `SINKHORN_SWEEPS`. Raises UsageError for a temperature or tolerance that is not
    above 0.
    """
    if not tolerance > 0:
        raise UsageError(f"tolerance = {tolerance} must be above 0")
    held = _held_for(scores, temperature)
    if held.shape[0] > held.shape[1]:  # one side must come first: the shorter, so that a matrix and its transpose agree
        cols, rows = _even_offsets(held.transposed(), temperature, tolerance)
    else:
        rows, cols = _even_offsets(held, temperature, tolerance)
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
            # row and column offsets in an order that gives the transpose the same rounding
            part -= row_offset[piece, None] + col_offset
            moved[piece] = part

        over_rows(scores.shape[0], scores.shape[1], fill)
        return moved

    def at(self, rows: Rows, cols: Rows) -> Floats:
        scores = self.base.at(rows, cols).astype(np.float64) * self.factor
        return np.asarray(scores - (self.row_offset[rows] + self.col_offset[cols]))

    def transposed(self) -> _OffsetSource:
        return _OffsetSource(self.base.transposed(), self.factor, self.col_offset, self.row_offset)


def _even_offsets(scores: ScoreMatrix, temperature: float, tolerance: float) -> tuple[Offsets, Offsets]:
    """r and c for uniform marginals, exact for columns and within the tolerance for rows (Sinkhorn iterations).

    Iterations are over-relaxed with the optimal factor, estimated from how fast errors shrink: sharp plans
    (temperature 100) take tens of sweeps instead of hundreds. The last sweep is a plain one, so that its error is true.
    """
    turned, log_rows, log_cols = scores.transposed(), np.log(scores.shape[0]), np.log(scores.shape[1])
    rows = log_sum_exp(scores, temperature) + log_rows
    cols = log_sum_exp(turned, temperature, rows) + log_cols
    target = aim = np.log1p(tolerance)
    factor, plain, before = 1.0, True, np.inf
    for sweep in range(1, SINKHORN_SWEEPS):
        change = log_sum_exp(scores, temperature, cols) + log_rows - rows  # the logarithms of rows' shares
        error = float(np.abs(change).max())
        if plain and error <= target:
            break
        if sweep % _SWEEPS_AN_ESTIMATE == 0:
            shrinkage = (error / before) ** (1 / _SWEEPS_AN_ESTIMATE)
            factor, before = _relaxation(factor, shrinkage), error
        step = 1.0 if error <= aim else factor
        plain = step == 1.0
        if plain and factor > 1.0:
            aim, before = aim / 2, np.inf
        rows = rows + step * change
        cols = cols + step * (log_sum_exp(turned, temperature, rows) + log_cols - cols)
    return rows, log_sum_exp(turned, temperature, rows) + log_cols


def _relaxation(factor: float, shrinkage: float) -> float:
    """The optimal factor, from the error reduction per sweep with this one (Young 1954); smaller if errors grow."""
    if shrinkage >= 1.0:
        return 1.0 + (factor - 1.0) / 2
    if shrinkage == 0.0:
        return factor
    unrelaxed = (shrinkage + factor - 1.0) ** 2 / (shrinkage * factor**2)
    return max(factor, 2.0 / (1.0 + math.sqrt(1.0 - min(unrelaxed, 1.0 - 1e-5))))


def mean_of_greatest(scores: ScoreMatrix, count: int) -> Offsets:
    queries, gallery = scores.shape
    taken = min(count, gallery)
    means = np.empty(queries)
    for rows, tile in scores.row_tiles():
        greatest = np.partition(tile, gallery - taken, axis=1)[:, gallery - taken :]
        # sorted, so that the sum does not depend on the order of the gallery
        means[rows] = np.sort(greatest, axis=1).astype(np.float64).sum(axis=1) / taken
    return means


def _held_for(scores: ScoreMatrix, temperature: float) -> ScoreMatrix:
    if not (np.isfinite(temperature) and temperature > 0):
        raise UsageError(f"temperature = {temperature} must be a finite number above 0")
    return scores.in_memory()


def log_sum_exp(scores: ScoreMatrix, temperature: float, offsets: Offsets | None = None) -> Offsets:
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
