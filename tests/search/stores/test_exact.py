"""Search is exact: the same as sorting all float64 scores, whatever the blocks, the file order or the ties."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmpagl_core.errors import DataError, MismatchError, UsageError
from cmpagl_core.search.stores.exact import top_k


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def by_sorting(features: np.ndarray, queries: np.ndarray, k: int, places: np.ndarray) -> np.ndarray:
    scores = (features.astype(np.float64)[None] * queries.astype(np.float64)[:, None]).sum(axis=2)
    return np.stack([np.lexsort((places, -row))[:k] for row in scores])


@given(
    rows=st.integers(1, 60), dim=st.integers(1, 20), count=st.integers(1, 4), k=st.integers(1, 70),
    copies=st.integers(0, 30), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_best_are_those_of_a_full_sort_with_ties_by_id(
    rows: int, dim: int, count: int, k: int, copies: int, seed: int
) -> None:
    features, queries = unit(rows, dim, seed), unit(count, dim, seed + 1)
    features = np.concatenate([features, np.repeat(features[:1], copies, axis=0)])  # exact ties
    places = np.random.default_rng(seed).permutation(len(features))
    found = top_k(features, queries, k, places)
    np.testing.assert_array_equal(found.rows, by_sorting(features, queries, min(k, len(features)), places))
    assert (np.diff(found.scores, axis=1) <= 0).all()


@given(rows=st.integers(1, 60), k=st.integers(1, 70), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_filter_comes_before_the_search(rows: int, k: int, share: float, seed: int) -> None:
    features, queries = unit(rows, 8, seed), unit(3, 8, seed + 1)
    where = np.random.default_rng(seed).random(rows) < share
    allowed = np.flatnonzero(where)
    found = top_k(features, queries, k, where=where)
    expected = by_sorting(features[allowed], queries, min(k, len(allowed)), np.arange(len(allowed)))
    np.testing.assert_array_equal(found.rows, allowed[expected])


def test_blocks_change_nothing() -> None:
    features, queries = unit(5000, 16, 0), unit(7, 16, 1)
    whole = top_k(features, queries, 10)
    for budget_bytes in (1, 200_000):  # five blocks and two
        found = top_k(features, queries, 10, budget_bytes=budget_bytes)
        np.testing.assert_array_equal(found.rows, whole.rows)
        np.testing.assert_array_equal(found.scores, whole.scores)


def test_shuffling_the_files_changes_no_result() -> None:
    features = unit(3000, 16, 0)
    features[100:140] = features[100]  # forty copies of one image
    ids = np.array([f"{row:05d}" for row in range(3000)])
    query = features[100:101]
    expected = ids[top_k(features, query, 25).rows[0]]
    assert list(expected) == [f"{row:05d}" for row in range(100, 125)]
    shuffled = np.random.default_rng(5).permutation(3000)
    place = np.argsort(np.argsort(ids[shuffled]))
    found = top_k(features[shuffled], query, 25, place, budget_bytes=1)
    assert list(ids[shuffled][found.rows[0]]) == list(expected)


def test_scores_that_float32_cannot_tell_apart_are_ranked_by_their_exact_value() -> None:
    query = np.array([[1.0, 2.0**-20, 0.0]], dtype=np.float32)
    features = np.array([[0.5, 0.0, 0.0], [0.5, 2.0**-20, 0.0], [0.5, -(2.0**-20), 0.0]], dtype=np.float32)
    assert top_k(features, query, 3).rows[0].tolist() == [1, 0, 2]


def test_a_gallery_of_equal_images_is_ranked_by_id() -> None:
    features = np.repeat(unit(1, 8, 0), 4000, axis=0)
    found = top_k(features, unit(2, 8, 1), 5, np.arange(4000)[::-1].copy(), budget_bytes=1)
    assert found.rows.tolist() == [[3999, 3998, 3997, 3996, 3995]] * 2


def test_a_large_gallery_is_searched_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.npy"
    features = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(100_000, 64))
    features[:] = unit(100_000, 64, 0)
    mapped = np.load(path, mmap_mode="r")
    tracemalloc.start()
    found = top_k(mapped, unit(16, 64, 1), 10, budget_bytes=4 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20  # the gallery is 25 MB
    np.testing.assert_array_equal(found.rows, top_k(features, unit(16, 64, 1), 10).rows)


def test_searches_that_cannot_be_are_refused() -> None:
    features = unit(10, 8, 0)
    with pytest.raises(UsageError, match="k is 0"):
        top_k(features, unit(1, 8, 0), 0)
    with pytest.raises(MismatchError, match="the query has 7 dimensions and the gallery 8"):
        top_k(features, unit(1, 7, 0), 1)
    with pytest.raises(DataError, match="has no images"):
        top_k(features[:0], unit(1, 8, 0), 1)
    features[3, 3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        top_k(features, unit(1, 8, 0), 1)
