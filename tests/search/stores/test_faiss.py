"""faiss finds candidates and exact products order them: a flat index gives what the exact store gives."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmpagl_core.errors import CmpaglError, DataError, MismatchError, UsageError
from cmpagl_core.progress import Silent
from cmpagl_core.search.stores.candidates import measured_recall
from cmpagl_core.search.stores.exact import ExactStore
from cmpagl_core.search.stores.faiss import FaissKind, FaissStore
from tests.search.stores.test_exact import unit

FEATURES = unit(2000, 32, 0)
QUERIES = unit(9, 32, 1)


def built(kind: FaissKind, features: np.ndarray = FEATURES) -> FaissStore:
    return FaissStore.build(ExactStore(features), Silent(), kind)


@pytest.fixture(scope="module")
def flat() -> FaissStore:
    return built("flat")


@given(k=st.integers(1, 40), share=st.sampled_from([None, 0.0, 0.01, 0.3, 0.9]), seed=st.integers(0, 9))
def test_a_flat_index_gives_what_the_exact_store_gives(
    flat: FaissStore, k: int, share: float | None, seed: int
) -> None:
    where = None if share is None else np.random.default_rng(seed).random(len(FEATURES)) < share
    found, expected = flat.top_k(QUERIES, k, where), ExactStore(FEATURES).top_k(QUERIES, k, where)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_what_an_approximate_index_finds_is_scored_exactly(kind: FaissKind) -> None:
    store, where = built(kind), np.arange(len(FEATURES)) % 3 == 0
    for allowed in (None, where):
        found = store.top_k(QUERIES, 10, allowed)
        exact = (FEATURES.astype(np.float64)[found.rows] * QUERIES.astype(np.float64)[:, None]).sum(axis=2)
        np.testing.assert_array_equal(found.scores, exact)
        assert (np.diff(found.scores, axis=1) <= 0).all()
        assert allowed is None or allowed[found.rows].all()
    assert measured_recall(store, ExactStore(FEATURES), samples=50) > (0.95 if kind == "hnsw" else 0.3)


def test_a_full_disk_is_named_and_leaves_the_old_index(flat: FaissStore, tmp_path: Path) -> None:
    flat.save(tmp_path / "a.faiss")
    before = (tmp_path / "a.faiss").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(CmpaglError, match=r"cannot write .*a\.faiss \(File too large\)"):
            flat.save(tmp_path / "a.faiss")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "a.faiss").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_saved_index_is_the_same_and_a_broken_or_foreign_one_is_refused(flat: FaissStore, tmp_path: Path) -> None:
    flat.save(tmp_path / "a.faiss")
    again = FaissStore.open(ExactStore(FEATURES), tmp_path / "a.faiss", flat.rows)
    np.testing.assert_array_equal(again.top_k(QUERIES, 5).rows, flat.top_k(QUERIES, 5).rows)
    with pytest.raises(MismatchError, match="has 2,000 positions of 32 numbers, not 2,000 of 16"):
        FaissStore.open(ExactStore(unit(2000, 16, 0)), tmp_path / "a.faiss", flat.rows)
    (tmp_path / "b.faiss").write_bytes(b"no index")
    with pytest.raises(DataError, match=r"b\.faiss is not a faiss index"):
        FaissStore.open(ExactStore(FEATURES), tmp_path / "b.faiss", flat.rows)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_an_update_keeps_what_stayed_adds_what_came_and_forgets_what_went(kind: FaissKind) -> None:
    kept = np.sort(np.random.default_rng(3).permutation(2000)[:1800])
    new = unit(50, 32, 7)
    features = np.concatenate([new, FEATURES[kept]])  # new rows come first: all others move
    row_of_old = np.full(2000, -1)
    row_of_old[kept] = np.arange(1800) + 50
    exact = ExactStore(features)
    store = built(kind).updated(exact, row_of_old, Silent(), kind)
    assert len(store.rows) == 2050
    found = store.top_k(new, 1)
    if kind == "ivfpq":
        assert (found.rows >= 0).all()
    else:
        np.testing.assert_array_equal(found.rows[:, 0], np.arange(50))
    if kind == "flat":
        np.testing.assert_array_equal(store.top_k(QUERIES, 10).rows, exact.top_k(QUERIES, 10).rows)


def test_an_index_of_which_too_much_is_gone_is_built_again() -> None:
    row_of_old = np.where(np.arange(2000) < 1000, np.arange(2000), -1)
    store = built("flat").updated(ExactStore(FEATURES[:1000]), row_of_old, Silent(), "flat")
    assert len(store.rows) == 1000


def test_without_faiss_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"pip install 'cmpagl\[ann\]', or --store exact"):
        built("flat")
