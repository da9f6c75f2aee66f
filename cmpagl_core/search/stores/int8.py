"""Exact search for many queries: scans an int8 copy of the gallery and ranks the best in float64 (ours).

The copy has a quarter of the size, so scanning it takes a quarter of the memory traffic. The error of a scanned score
is bounded by the rounding of each row and of the query (Cauchy-Schwarz), and every row that could still belong to the
best k is scored exactly: the result is that of `exact.top_k`, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmpagl_core.progress import Progress
from cmpagl_core.search.stores.exact import ExactStore, Merger, blocks, check_search, scan_error
from cmpagl_core.search.stores.store import TopK

_ROWS_FOR_ONE = 131_072  # rows scanned at once for few queries: the scores of a block stay in the cache
_ROWS_FOR_MANY = 16_384
_ROWS_OF_A_BOUND = 64  # their scales differ little
_FEW_QUERIES = 2
_MANY_QUERIES = 32  # for the trial
_CHECKED_ROWS = 4096
_TIMED_ROWS = 131_072  # more than caches hold; a smaller gallery is searched in milliseconds anyway
_BF16_ROUNDING = 2.0**-8
_LEVELS = 127
_WORTH_A_SCAN = 0.5  # share of the rows that may be found; below it, they alone are read


class Int8Store:
    """An exact store prepared for many searches, at the cost of a quarter of its memory and one slow pass over it."""

    def __init__(self, exact: ExactStore, progress: Progress) -> None:
        self._exact, features = exact, exact.features
        count, dim = features.shape
        self._codes = torch.empty((count, dim), dtype=torch.int8)
        self._scales = torch.empty(count, dtype=torch.bfloat16)
        self._errors = np.zeros(-(-count // _ROWS_FOR_MANY))  # of the rows of a block, the largest
        with progress.task("prepare the gallery", count, "img") as advance:
            for number, start in enumerate(range(0, count, _ROWS_FOR_MANY)):
                part = slice(start, start + _ROWS_FOR_MANY)
                self._codes[part], self._scales[part], self._errors[number] = _quantise(features[part])
                advance(len(features[part]))
        self._scans = _faster_than_float32(self._codes, self._scales, features)

    def __len__(self) -> int:
        return len(self._exact)

    def top_k(self, queries: NDArray[np.float32], k: int, where: NDArray[np.bool_] | None = None) -> TopK:
        """As in `Store`, bit-identical to the exact store."""
        features = self._exact.features
        check_search(features, queries, k)
        few = len(queries) <= _FEW_QUERIES
        if not self._scans[few] or (where is not None and where.mean() < _WORTH_A_SCAN):
            return self._exact.top_k(queries, k, where)
        merger = Merger(features, queries, min(k, len(features)), self._exact.tie_order)
        query = _query(few, queries)
        parts = blocks(len(features), k, _ROWS_FOR_ONE if few else _ROWS_FOR_MANY)
        start, stop = next(parts)  # exact, so that there is a floor
        first = np.arange(start, stop) if where is None else start + np.flatnonzero(where[start:stop])
        merger.add_block(first, queries @ features[first].T, scan_error(queries.shape[1], queries))
        found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        merge_at = 2 * stop  # a floor is worth raising when as many rows again have been seen
        for start, stop in parts:
            error = self._errors[start // _ROWS_FOR_MANY : -(-stop // _ROWS_FOR_MANY)].max()
            rows, columns = query.scan(self._codes[start:stop], self._scales[start:stop], merger.floors, float(error))
            if where is not None:
                allowed = where[start + rows]
                rows, columns = rows[allowed], columns[allowed]
            found.append((columns, rows + start))
            if stop >= merge_at:
                _merge(merger, found)
                merge_at = 2 * stop
        _merge(merger, found)
        return merger.best()


class _FewQueries:
    """Queries in bfloat16 against int8 rows: memory-bound, so torch's kernel for quantised weights is used."""

    def __init__(self, queries: NDArray[np.float32]) -> None:
        exact = _tensor(queries)
        self._rounded = exact.bfloat16()
        self._lengths = exact.double().norm(dim=1).numpy()
        self._own_errors = (exact - self._rounded.float()).double().norm(dim=1).numpy()

    def scan(
        self, codes: Tensor, scales: Tensor, floors: NDArray[np.float64], row_error: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and queries whose exact product may reach the floors [Q]."""
        scores = torch._weight_int8pack_mm(self._rounded, codes, scales).float()  # [Q, block]
        lowest = floors - row_error * self._lengths - (1 + row_error) * self._own_errors
        lowest = lowest - _BF16_ROUNDING * np.abs(lowest) - scan_error(codes.shape[1], self._rounded.float().numpy())
        rows = [np.flatnonzero((row >= least).numpy()) for row, least in zip(scores, lowest.tolist(), strict=True)]
        return np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(found) for found in rows])


class _ManyQueries:
    """Queries in int8 too: integer products are exact, and their matrix product is the fastest available."""

    def __init__(self, queries: NDArray[np.float32]) -> None:
        codes, scales, _ = _quantise(queries)
        exact = queries.astype(np.float64)
        self._scales = scales.float()
        self._codes = codes.T.contiguous()  # [D, Q]
        self._lengths = np.linalg.norm(exact, axis=1)
        rounded = codes.double().numpy() * scales.double().numpy()[:, None]
        self._own_errors = np.linalg.norm(exact - rounded, axis=1)

    def scan(
        self, codes: Tensor, scales: Tensor, floors: NDArray[np.float64], row_error: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and queries whose exact product may reach the floors [Q]."""
        products = torch._int_mm(codes, self._codes)  # [block, Q] int32
        lowest = floors - row_error * self._lengths - (1 + row_error) * self._own_errors
        lowest = lowest - 2.0**-20 * np.abs(lowest)  # float32 rounding of what follows
        least, row_scales = torch.from_numpy(lowest).float() / self._scales, scales.float()
        rows, columns = np.divmod(_true_at(_may_reach(products, least, row_scales)), products.shape[1])
        few = products.numpy()[rows, columns].astype(np.float32) * row_scales.numpy()[rows]
        reach = few >= least.numpy()[columns]
        return rows[reach], columns[reach]


def _may_reach(products: Tensor, least: Tensor, row_scales: Tensor) -> Tensor:
    """Where products [B, Q] times their row's scale may reach `least` [Q]: a few too many, in one pass."""
    group = _ROWS_OF_A_BOUND if len(products) % _ROWS_OF_A_BOUND == 0 else len(products)
    scales = row_scales.double().view(-1, group)
    largest, smallest = scales.amax(dim=1)[:, None], scales.amin(dim=1)[:, None]
    least = least.double() - 2.0**-20 * least.double().abs()
    bounds = torch.where(least > 0, least / largest, least / smallest).floor()  # [B / group, Q]
    bounds = bounds.clamp(-(2.0**31), 2.0**31 - 1).to(torch.int32)
    return (products.view(-1, group, products.shape[1]) >= bounds[:, None]).view_as(products)


def _true_at(mask: Tensor) -> NDArray[np.int64]:
    """Flat positions of what is true: eight are looked at at once, since nearly nothing is."""
    flat = mask.numpy().reshape(-1)
    if len(flat) % 8:
        return np.flatnonzero(flat)
    eighths = np.flatnonzero(flat.view(np.uint64))
    which, inside = np.nonzero(flat.reshape(-1, 8)[eighths])
    return eighths[which] * 8 + inside


def _merge(merger: Merger, found: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> None:
    if found:
        merger.add_pairs(np.concatenate([columns for columns, _ in found]), np.concatenate([rows for _, rows in found]))
        found.clear()


def _quantise(rows: NDArray[np.float32]) -> tuple[Tensor, Tensor, float]:
    """int8 codes [B, D], bfloat16 scales [B], and the largest error of a row against its codes times its scale."""
    exact = _tensor(rows)
    scales = (exact.abs().amax(dim=1) / _LEVELS).clamp_min(1e-30).bfloat16()
    codes = (exact / scales.float()[:, None]).round_().clamp_(-_LEVELS, _LEVELS)
    error = (exact - codes * scales.float()[:, None]).double().norm(dim=1).max()
    return codes.to(torch.int8), scales, float(error)


def _tensor(rows: NDArray[np.float32]) -> Tensor:
    """A copy, since a gallery's features are a read-only map, which torch does not accept."""
    return torch.from_numpy(np.array(rows, dtype=np.float32))


def _faster_than_float32(codes: Tensor, scales: Tensor, features: NDArray[np.float32]) -> dict[bool, bool]:
    """For few and for many queries: whether this machine's int8 kernel exists, is correct, and beats float32.

    The kernels are torch's but not public, and slow on processors without int8 instructions. The choice affects only
    the time: the result is exact either way.
    """
    if len(features) < _TIMED_ROWS:
        return {True: False, False: False}
    some = np.ascontiguousarray(features[:_CHECKED_ROWS])
    return {
        few: _is_right(few, codes, scales, some) and _is_faster(few, codes, scales, features) for few in (True, False)
    }


def _query(few: bool, queries: NDArray[np.float32]) -> _FewQueries | _ManyQueries:
    return _FewQueries(queries) if few else _ManyQueries(queries)


def _is_right(few: bool, codes: Tensor, scales: Tensor, some: NDArray[np.float32]) -> bool:
    """Whether every row whose exact score reaches a floor is found, and not simply every row."""
    queries = some[: _FEW_QUERIES if few else _MANY_QUERIES]
    scores = queries.astype(np.float64) @ some.astype(np.float64).T
    floors = np.sort(scores, axis=1)[:, -len(some) // 100]
    codes, scales = codes[: len(some)], scales[: len(some)]
    error = (_tensor(some) - codes * scales.float()[:, None]).double().norm(dim=1).max()
    try:
        rows, columns = _query(few, queries).scan(codes, scales, floors, float(error))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    found = np.zeros(scores.shape, dtype=bool)
    found[columns, rows] = True
    return bool(found[scores >= floors[:, None]].all()) and bool(found.mean() < 0.5)


def _is_faster(few: bool, codes: Tensor, scales: Tensor, features: NDArray[np.float32]) -> bool:
    queries = np.ascontiguousarray(features[: 1 if few else _MANY_QUERIES])
    query, none = _query(few, queries), np.full(len(queries), 2.0)
    block = _ROWS_FOR_ONE if few else _ROWS_FOR_MANY
    starts = range(0, _TIMED_ROWS, block)

    def in_int8() -> None:
        for start in starts:
            query.scan(codes[start : start + block], scales[start : start + block], none, 0.0)

    def in_float32() -> None:
        for start in starts:
            np.flatnonzero(queries @ features[start : start + block].T >= 2.0)

    return _elapsed_s(in_int8) < _elapsed_s(in_float32)


def _elapsed_s(work: Callable[[], object]) -> float:
    """The best of a few tries."""
    times = []
    for _ in range(5):
        started_at = time.perf_counter()
        work()
        times.append(time.perf_counter() - started_at)
    return min(times)
