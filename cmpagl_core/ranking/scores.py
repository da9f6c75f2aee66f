"""The similarity matrix between queries and gallery, read in tiles and never held in memory at once (section 4).

Scores of features are *exact*: features are unit length and rounded to multiples of 2^-24, so every product is a
multiple of 2^-48 and every partial sum stays below 2, which float64 holds without rounding. A score therefore does
not depend on tile size, thread count or the order of the files, and identical captions tie exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from cmpagl_core.errors import DataError

DEFAULT_BUDGET_BYTES = 512 * 2**20

Floats = NDArray[Any]  # float32 or float64
Rows = NDArray[np.int64]

_GRID = 2.0**24
_SHARES_OF_BUDGET = 16  # a tile and the temporaries that formulas make of it
_MAX_TILE_ELEMENTS = 4 * 2**20
_PAIRS_AT_ONCE = 1 << 14


class ScoreSource(Protocol):
    """A source of scores for `ScoreMatrix`."""

    @property
    def shape(self) -> tuple[int, int]:
        """Queries and gallery."""

    def block(self, rows: slice, cols: slice) -> Floats:
        """Scores [rows, cols]; read-only."""

    def at(self, rows: Rows, cols: Rows) -> Floats:
        """Scores of single pairs, equal to what `block` gives for them."""

    def transposed(self) -> ScoreSource:
        """The same scores with queries and gallery exchanged."""


@dataclass(frozen=True, eq=False)
class ScoreMatrix:
    """Scores [queries, gallery] (images x texts unless transposed), computed or read tile by tile."""

    source: ScoreSource
    budget_bytes: int = DEFAULT_BUDGET_BYTES

    @classmethod
    def from_features(
        cls,
        image_features: ArrayLike,
        text_features: ArrayLike,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        less: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    ) -> ScoreMatrix:
        """Cosines of image_features [N, D] and text_features [M, D].

        less: potentials of images [N] and of texts [M] that are subtracted (models/balance.py).
        Raises DataError for widths that differ, values that are not finite, or a feature of length 0.
        """
        images, texts = _unit_rows(image_features, "image_features"), _unit_rows(text_features, "text_features")
        if images.shape[1] != texts.shape[1]:
            raise DataError(
                f"image_features are {images.shape[1]} wide and text_features {texts.shape[1]}",
                hint="export both from one model",
            )
        if less is not None:
            of_images, of_texts = (np.rint(side * _GRID)[:, None] / _GRID for side in less)
            images = np.hstack([images, np.ones_like(of_images), -of_images]).astype(np.float32)
            texts = np.hstack([texts, -of_texts, np.ones_like(of_texts)]).astype(np.float32)
        return cls(_CosineSource(images, texts), budget_bytes)

    @classmethod
    def from_array(cls, scores: NDArray[Any], budget_bytes: int = DEFAULT_BUDGET_BYTES) -> ScoreMatrix:
        """A matrix computed elsewhere; memory-mapped arrays are read tile by tile.

        Raises DataError unless it is two-dimensional, real, not empty and finite.
        """
        if scores.ndim != 2 or 0 in scores.shape:
            raise DataError(f"scores must be a matrix of images x texts, not of shape {tuple(scores.shape)}")
        if scores.dtype.kind not in "fiu":
            raise DataError(f"scores must be real numbers, not {scores.dtype}")
        matrix = cls(_ArraySource(scores), budget_bytes)
        for rows, tile in matrix.row_tiles():
            if not np.isfinite(tile).all():
                row, col = np.argwhere(~np.isfinite(tile))[0]
                raise DataError(f"scores[{rows.start + row}, {col}] is {tile[row, col]}, not a finite number")
        return matrix

    @classmethod
    def zeros(cls, shape: tuple[int, int], budget_bytes: int = DEFAULT_BUDGET_BYTES) -> ScoreMatrix:
        """A score of 0 for every pair, in no memory; a base for `with_candidates`."""
        return cls(_ArraySource(np.broadcast_to(np.float32(0.0), shape)), budget_bytes)

    @property
    def shape(self) -> tuple[int, int]:
        return self.source.shape

    def block(self, rows: slice, cols: slice) -> Floats:
        """Scores [rows, cols] as float32 or float64; read-only."""
        return self.source.block(rows, cols)

    def at(self, rows: Rows, cols: Rows) -> Floats:
        """Scores of single pairs (row, col)."""
        return self.source.at(rows, cols)

    def row_tiles(self) -> Iterator[tuple[slice, Floats]]:
        """Complete rows, as many at a time as the budget allows: (slice of rows, scores [rows, gallery])."""
        queries, gallery = self.shape
        for rows in tile_slices(queries, gallery, self.budget_bytes):
            yield rows, self.block(rows, slice(0, gallery))

    def transposed(self) -> ScoreMatrix:
        """The other direction: gallery and queries exchanged."""
        return ScoreMatrix(self.source.transposed(), self.budget_bytes)

    def with_candidates(self, rows: ArrayLike, cols: ArrayLike, added: ArrayLike) -> ScoreMatrix:
        """Add a value to some pairs, each at most once (the match probabilities of ITM candidates).

        Raises ValueError for a pair given twice or outside the matrix.
        """
        source = _CandidateSource.build(
            self.source, np.asarray(rows, np.int64), np.asarray(cols, np.int64), _as_floats(np.asarray(added))
        )
        return ScoreMatrix(source, self.budget_bytes)

    def in_memory(self) -> ScoreMatrix:
        """The same scores, computed and held in memory if they take at most a quarter of the budget."""
        queries, gallery = self.shape
        if isinstance(self.source, _ArraySource) or queries * gallery * 8 > self.budget_bytes // 4:
            return self
        tiles = [np.asarray(tile) for _, tile in self.row_tiles()]
        return replace(self, source=_ArraySource(np.concatenate(tiles) if len(tiles) > 1 else tiles[0]))


def tile_slices(count: int, width: int, budget_bytes: int) -> Iterator[slice]:
    """Cut `count` rows of `width` float64 numbers into pieces within a budget, of at least one row."""
    elements = min(budget_bytes // (8 * _SHARES_OF_BUDGET), _MAX_TILE_ELEMENTS)
    step = max(1, elements // max(1, width))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


@dataclass(frozen=True, eq=False)
class _CosineSource:
    """Inner products of unit rows on the grid; exact (see the module docstring)."""

    left: NDArray[np.float32]  # [queries, D]
    right: NDArray[np.float32]  # [gallery, D]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.left), len(self.right)

    def block(self, rows: slice, cols: slice) -> Floats:
        # torch, not numpy, so that --threads applies to the product too
        left = torch.from_numpy(self.left[rows]).double()
        right = torch.from_numpy(self.right[cols]).double()
        product: Floats = (left @ right.T).float().numpy()
        return product

    def at(self, rows: Rows, cols: Rows) -> Floats:
        found = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            products = self.left[rows[part]].astype(np.float64) * self.right[cols[part]]
            found[part] = products.sum(axis=1)
        return found

    def transposed(self) -> _CosineSource:
        return _CosineSource(self.right, self.left)


@dataclass(frozen=True, eq=False)
class _ArraySource:
    """Scores in memory or in a file."""

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, int]:
        return self.array.shape[0], self.array.shape[1]

    def block(self, rows: slice, cols: slice) -> Floats:
        return _as_floats(self.array[rows, cols])

    def at(self, rows: Rows, cols: Rows) -> Floats:
        return _as_floats(self.array[rows, cols])

    def transposed(self) -> _ArraySource:
        return _ArraySource(self.array.T)


@dataclass(frozen=True, eq=False)
class _CandidateSource:
    """Another source with values added to some pairs, sorted by row, then column."""

    base: ScoreSource
    rows: Rows
    cols: Rows
    added: Floats

    @classmethod
    def build(cls, base: ScoreSource, rows: Rows, cols: Rows, added: Floats) -> _CandidateSource:
        queries, gallery = base.shape
        if len(rows) and (rows.min() < 0 or cols.min() < 0 or rows.max() >= queries or cols.max() >= gallery):
            raise ValueError("a candidate lies outside the score matrix")
        keys = rows * gallery + cols
        order = np.argsort(keys)
        if (np.diff(keys[order]) == 0).any():
            raise ValueError("a candidate pair is given twice")
        return cls(base, rows[order], cols[order], added[order])

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape

    def block(self, rows: slice, cols: slice) -> Floats:
        scores = self.base.block(rows, cols).astype(self._dtype())  # a copy, to be written into
        first, last = np.searchsorted(self.rows, [rows.start, rows.stop])
        part = slice(int(first), int(last))
        inside = (self.cols[part] >= cols.start) & (self.cols[part] < cols.stop)
        at = (self.rows[part][inside] - rows.start, self.cols[part][inside] - cols.start)
        scores[at] += self.added[part][inside]
        return scores

    def at(self, rows: Rows, cols: Rows) -> Floats:
        scores = self.base.at(rows, cols).astype(self._dtype())
        gallery = self.shape[1]
        known, wanted = self.rows * gallery + self.cols, rows * gallery + cols
        if len(known) == 0:
            return scores
        place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        hit = known[place] == wanted
        scores[hit] += self.added[place[hit]]
        return scores

    def transposed(self) -> _CandidateSource:
        return _CandidateSource.build(self.base.transposed(), self.cols, self.rows, self.added)

    def _dtype(self) -> np.dtype[Any]:
        return np.result_type(self.base.block(slice(0, 1), slice(0, 1)), self.added)


@dataclass(frozen=True, eq=False)
class Flipped:
    """The transpose of any source."""

    base: ScoreSource

    @property
    def shape(self) -> tuple[int, int]:
        queries, gallery = self.base.shape
        return gallery, queries

    def block(self, rows: slice, cols: slice) -> Floats:
        return self.base.block(cols, rows).T

    def at(self, rows: Rows, cols: Rows) -> Floats:
        return self.base.at(cols, rows)

    def transposed(self) -> ScoreSource:
        return self.base


def _as_floats(values: NDArray[Any]) -> Floats:
    if values.dtype == np.float32 or values.dtype == np.float64:
        return np.asarray(values)
    return np.asarray(values, np.float32 if values.dtype == np.float16 else np.float64)


def _unit_rows(features: ArrayLike, name: str) -> NDArray[np.float32]:
    """Rows [N, D] scaled to length 1 and rounded to the grid. Raises DataError."""
    given = np.asarray(features)
    if given.ndim != 2 or 0 in given.shape or given.dtype.kind != "f":
        raise DataError(f"{name} must be rows of real numbers, not {given.dtype} of shape {tuple(given.shape)}")
    unit = np.empty(given.shape, np.float32)
    for rows in tile_slices(len(given), given.shape[1], DEFAULT_BUDGET_BYTES // 8):
        part = given[rows].astype(np.float64)
        norms = np.sqrt((part * part).sum(axis=1, keepdims=True))
        broken = ~(np.isfinite(norms) & (norms > 0))
        if broken.any():
            row = rows.start + int(np.argmax(broken))
            raise DataError(f"{name}: row {row} is zero or not finite", hint="export the features again")
        unit[rows] = np.rint(part / norms * _GRID) / _GRID
    return unit
