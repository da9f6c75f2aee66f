"""The int8 scan gives the exact result, bit for bit, whatever kernels the machine has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cmpagl_core.errors import DataError, MismatchError, UsageError
from cmpagl_core.progress import Silent
from cmpagl_core.search.stores import int8
from cmpagl_core.search.stores.exact import ExactStore, top_k
from cmpagl_core.search.stores.int8 import Int8Store


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def clustered(rows: int, dim: int, seed: int) -> np.ndarray:
    """Many near-duplicates, many exact duplicates, and rows with one large number: what int8 tells apart badly."""
    values = unit(20, dim, seed)[np.random.default_rng(seed).integers(0, 20, rows)]
    values = values + 1e-4 * unit(rows, dim, seed + 1)
    values[: rows // 4] = values[0]
    values[rows // 4 : rows // 3, 0] += 5
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def scanned(features: np.ndarray, places: np.ndarray | None = None) -> Int8Store:
    return Int8Store(ExactStore(features, places), Silent())


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the int8 kernels whenever they are right, and for galleries of any size."""
    monkeypatch.setattr(int8, "_ROWS_FOR_ONE", 2048)
    monkeypatch.setattr(int8, "_ROWS_FOR_MANY", 1024)
    monkeypatch.setattr(int8, "_TIMED_ROWS", 0)
    monkeypatch.setattr(int8, "_is_faster", lambda *_: True)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("make", [unit, clustered])
@pytest.mark.parametrize("queries", [1, 2, 3, 40])
def test_the_scan_finds_what_the_exact_search_finds(make: object, queries: int) -> None:
    features = make(20_000, 64, 3)  # type: ignore[operator]
    asked = np.concatenate([features[:: 20_000 // queries][:queries] + 0.05 * unit(queries, 64, 9)])[:queries]
    asked = np.ascontiguousarray(asked / np.linalg.norm(asked, axis=1, keepdims=True), dtype=np.float32)
    places = np.random.default_rng(0).permutation(len(features))
    scanner = scanned(features, places)
    found, expected = scanner.top_k(asked, 10), top_k(features, asked, 10, places)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
    for share in (0.1, 0.7):
        where = np.random.default_rng(1).random(len(features)) < share
        found, expected = scanner.top_k(asked, 10, where), top_k(features, asked, 10, places, where=where)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.usefixtures("small_blocks")
def test_k_of_the_whole_gallery_is_its_whole_order() -> None:
    features = unit(6000, 16, 0)
    found = scanned(features).top_k(features[:1], 9999)
    np.testing.assert_array_equal(found.rows, top_k(features, features[:1], 6000).rows)


@pytest.mark.usefixtures("small_blocks")
def test_a_kernel_that_is_missing_or_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError("not on this machine")

    monkeypatch.setattr(torch, "_int_mm", missing)
    monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda query, codes, scales: torch.zeros(len(query), len(codes)))
    features = unit(8000, 16, 0)
    scanner = scanned(features)
    for queries in (features[:1], features[:30]):
        np.testing.assert_array_equal(scanner.top_k(queries, 5).rows, top_k(features, queries, 5).rows)


def test_a_small_gallery_is_searched_as_it_is() -> None:
    features = unit(50, 8, 0)
    np.testing.assert_array_equal(scanned(features).top_k(features, 5).rows, top_k(features, features, 5).rows)


def test_searches_that_cannot_be_are_refused() -> None:
    scanner = scanned(unit(10, 8, 0))
    with pytest.raises(UsageError, match="k is 0"):
        scanner.top_k(unit(1, 8, 0), 0)
    with pytest.raises(MismatchError, match="has 7 dimensions"):
        scanner.top_k(unit(1, 7, 0), 1)
    with pytest.raises(DataError, match="has no images"):
        scanned(unit(1, 8, 0)[:0]).top_k(unit(1, 8, 0), 1)


@pytest.mark.parametrize("shape", [(64, 8), (5, 3), (0, 4), (1, 16), (7, 8)])
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_what_is_true_is_found_eight_at_a_time(shape: tuple[int, int], share: float) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share
    assert np.array_equal(int8._true_at(mask), np.flatnonzero(mask.numpy()))


@pytest.mark.parametrize("rows", [128, 100])
def test_integer_bounds_leave_nothing_out_that_reaches_its_floor(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    products = torch.randint(-2_000_000, 2_000_000, (rows, 24), generator=generator, dtype=torch.int32)
    scales = torch.rand(rows, generator=generator) * 0.01 + 1e-4
    least = torch.linspace(-1e4, 1e4, 24)
    reach = products.double() * scales.double()[:, None] >= least.double()
    may = int8._may_reach(products, least, scales)
    assert bool(may[reach].all())
    assert not bool(may.all())
