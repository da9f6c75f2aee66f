"""SMR, similarity matrix reweighting: our reconstruction of the paper's re-ranking (section 4).

[paper] reweights scores by forward and backward ranks and a range ratio, with gamma1 and gamma2 from a grid search;
[ours] the two formulas below. SMR uses the other queries: it is transductive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import UsageError
from cmpagl_core.ranking.matrix_tiles import over_rows
from cmpagl_core.ranking.rank_stats import Ranks, RankStats
from cmpagl_core.ranking.scores import Flipped, Floats, Rows, ScoreMatrix, ScoreSource

SmrForm = Literal["multiply", "add"]

DECAY = 0.05
MAX_GAMMA = 1_000.0  # as in a recipe


def smr(
    scores: ScoreMatrix,
    gamma1: float,
    gamma2: float,
    form: SmrForm = "multiply",
    rank_stats: RankStats | None = None,
) -> ScoreMatrix:
    """Reweighted scores [queries, gallery], computed tile by tile on reading.

    With backward rank b, forward rank f, B = exp(-0.05 b) and E = (S - min) / (max - min) over the column:
    `multiply` is norm(S) (1 + gamma1 B + gamma2 E), `add` is exp(-0.05 f) + gamma1 B + gamma2 E.
    rank_stats: of these scores, if already computed. Raises UsageError for a gamma below 0 or above MAX_GAMMA.
    """
    for name, gamma in (("gamma1", gamma1), ("gamma2", gamma2)):
        if not 0 <= gamma <= MAX_GAMMA:  # false for NaN
            raise UsageError(f"{name} = {gamma} must be a number from 0 to {MAX_GAMMA:,.0f}")
    known = RankStats.of(scores) if rank_stats is None else rank_stats
    source = _SmrSource(known, gamma1, gamma2, form, decay_table(max(scores.shape)))
    return ScoreMatrix(source, scores.budget_bytes)


def decay_table(ranks: int) -> NDArray[np.float64]:
    """exp(-0.05 r) for r = 0 .. ranks - 1; in float64, since float32 underflows past rank 2,000."""
    table: NDArray[np.float64] = np.exp(-DECAY * np.arange(ranks, dtype=np.float64))
    return table


@dataclass(frozen=True, eq=False)
class _SmrSource:
    """The formula, applied to the part of the matrix being read."""

    rank_stats: RankStats
    gamma1: float
    gamma2: float
    form: SmrForm
    decay: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rank_stats.scores.shape

    def block(self, rows: slice, cols: slice) -> Floats:
        scores = self.rank_stats.scores.block(rows, cols)
        forward = self.rank_stats.forward(rows, cols) if self.form == "add" else None
        backward = self.rank_stats.backward(rows, cols) if self.gamma1 else None
        reweighted = np.empty(scores.shape)

        def fill(piece: slice) -> None:
            reweighted[piece] = self._formula(
                scores[piece],
                cols,
                None if forward is None else forward[piece],
                None if backward is None else backward[piece],
            )

        over_rows(scores.shape[0], scores.shape[1], fill)
        return reweighted

    def at(self, rows: Rows, cols: Rows) -> Floats:
        scores = self.rank_stats.scores.at(rows, cols)
        forward = self.rank_stats.forward_at(rows, cols) if self.form == "add" else None
        backward = self.rank_stats.backward_at(rows, cols) if self.gamma1 else None
        return self._formula(scores, cols, forward, backward)

    def transposed(self) -> ScoreSource:
        return Flipped(self)

    def _formula(
        self, scores: Floats, cols: slice | Rows, forward: Ranks | None, backward: Ranks | None
    ) -> NDArray[np.float64]:
        """scores and ranks [..., columns] or, for single pairs, [P] with `cols` [P]."""
        limits = self.rank_stats.range
        exact = scores.astype(np.float64)
        weight = _share(exact, limits.col_min[cols], limits.col_max[cols])
        weight *= self.gamma2
        if backward is not None:
            weight += self.gamma1 * self.decay[backward]
        if forward is not None:
            weight += self.decay[forward]
            return weight
        weight += 1.0
        weight *= _share(exact, np.float64(limits.least), np.float64(limits.greatest))
        return weight


def _share(values: NDArray[np.float64], low: Floats | np.float64, high: Floats | np.float64) -> NDArray[np.float64]:
    """(value - low) / (high - low), and 0 where high equals low."""
    span = np.asarray(high - low)
    shares: NDArray[np.float64] = (values - low) / np.where(span > 0, span, np.inf)
    return shares
