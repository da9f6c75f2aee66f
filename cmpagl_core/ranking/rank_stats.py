"""Ranks and ranges of a score matrix in both directions, each computed once for all re-rankings.

Equal scores share the best rank: ordinal ranks would let file order decide between identical captions (section 4).
"""

from __future__ import annotations

import tempfile
import weakref
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.ranking.matrix_tiles import over_rows
from cmpagl_core.ranking.scores import Floats, Rows, ScoreMatrix

Ranks = NDArray[Any]  # uint16 or int32

_SHARE_HELD = 8  # ranks stay in memory below this part of the budget


@dataclass(frozen=True, eq=False)
class RankStats:
    """Cached forward and backward ranks, row and column ranges of a score matrix, shared by all re-rankings of it."""

    scores: ScoreMatrix
    columns: ColumnRanks
    rows: ColumnRanks
    range: Range = field(repr=False)

    @classmethod
    def of(cls, scores: ScoreMatrix) -> RankStats:
        held = scores.in_memory()
        return cls(held, ColumnRanks(held), ColumnRanks(held.transposed()), _ranges(held))

    def backward(self, rows: slice, cols: slice) -> Ranks:
        """Rank of query i within column j: [rows, cols], 0 is first."""
        return self.columns.array()[rows, cols]

    def backward_at(self, rows: Rows, cols: Rows) -> Ranks:
        return np.asarray(self.columns.array()[rows, cols])

    def forward(self, rows: slice, cols: slice) -> Ranks:
        """Rank of gallery item j within row i: [rows, cols], 0 is first."""
        return self.rows.array()[cols, rows].T

    def forward_at(self, rows: Rows, cols: Rows) -> Ranks:
        return np.asarray(self.rows.array()[cols, rows])

    def transposed(self) -> RankStats:
        """The other direction, sharing what is already computed."""
        return RankStats(self.scores.transposed(), self.rows, self.columns, self.range.transposed())


class ColumnRanks:
    """Ranks within the columns of a matrix, [queries, gallery], computed on first use.

    They are kept in memory, or in an unnamed file (under TMPDIR) that disappears with its last user.
    """

    def __init__(self, scores: ScoreMatrix) -> None:
        self.scores = scores
        self.dtype = np.dtype(np.uint16 if scores.shape[0] <= 2**16 else np.int32)

    def array(self) -> Ranks:
        """All ranks; a file is mapped again each time, so that its pages do not count as this process's memory."""
        return self._store if isinstance(self._store, np.ndarray) else self._mapped("r")

    @cached_property
    def _store(self) -> Any:
        queries, gallery = self.scores.shape
        held = queries * gallery * self.dtype.itemsize <= self.scores.budget_bytes // _SHARE_HELD
        ranks: Ranks | None = np.empty(self.scores.shape, self.dtype) if held else None
        if not held:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with its last user
            weakref.finalize(self, self._file.close)
        for cols, tile in self.scores.transposed().row_tiles():
            target = self._mapped("r+" if cols.start else "w+") if ranks is None else ranks
            target[:, cols] = rank_rows(tile, self.dtype).T
        return self._file if ranks is None else ranks

    def _mapped(self, mode: str) -> Ranks:
        return np.memmap(self._file, self.dtype, mode=mode, shape=self.scores.shape)  # type: ignore[call-overload, no-any-return]


def rank_rows(scores: Floats, dtype: np.dtype[Any] | type = np.int32) -> Ranks:
    """For each score, the number of strictly greater ones in its row: ranks [rows, gallery]."""
    rows, width = scores.shape
    ranks: Ranks = np.empty(scores.shape, dtype)
    places = np.arange(width, dtype=np.int32)

    def rank(piece: slice) -> None:
        falling = -scores[piece]
        order = np.argsort(falling, axis=1)
        ordered = np.take_along_axis(falling, order, axis=1)
        first = np.zeros(ordered.shape, np.int32)
        np.multiply(ordered[:, 1:] != ordered[:, :-1], places[1:], out=first[:, 1:])
        np.maximum.accumulate(first, axis=1, out=first)
        np.put_along_axis(ranks[piece], order, first.astype(ranks.dtype), axis=1)

    over_rows(rows, width, rank)
    return ranks


@dataclass(frozen=True, eq=False)
class Range:
    """Smallest and greatest score of each row and of each column."""

    row_min: Floats  # [queries]
    row_max: Floats
    col_min: Floats  # [gallery]
    col_max: Floats

    @property
    def least(self) -> float:
        return float(self.row_min.min())

    @property
    def greatest(self) -> float:
        return float(self.row_max.max())

    def transposed(self) -> Range:
        return Range(self.col_min, self.col_max, self.row_min, self.row_max)


def _ranges(scores: ScoreMatrix) -> Range:
    queries, gallery = scores.shape
    row_min, row_max = np.empty(queries), np.empty(queries)
    col_min, col_max = np.full(gallery, np.inf), np.full(gallery, -np.inf)
    for rows, tile in scores.row_tiles():
        row_min[rows], row_max[rows] = tile.min(axis=1), tile.max(axis=1)
        np.minimum(col_min, tile.min(axis=0), out=col_min)
        np.maximum(col_max, tile.max(axis=0), out=col_max)
    return Range(row_min, row_max, col_min, col_max)
