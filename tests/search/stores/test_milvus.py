"""Milvus Lite finds what the exact store finds, and an update writes only what came and deletes what went."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from cmpagl_core.errors import CmpaglError, UsageError
from cmpagl_core.progress import Silent
from cmpagl_core.search.stores.exact import ExactStore
from cmpagl_core.search.stores.milvus import Attributes, MilvusStore, row_keys
from tests.search.stores.test_exact import unit

FEATURES = unit(2000, 32, 0)
QUERIES = unit(5, 32, 1)
KEYS = row_keys([f"image {row}" for row in range(2000)])


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, on import
        import pymilvus  # noqa: F401
    return str(tmp_path_factory.mktemp("milvus") / "images.db")


def test_milvus_gives_what_the_exact_store_gives_also_after_updates(uri: str) -> None:
    exact = ExactStore(FEATURES[:1500])
    first = MilvusStore(exact, KEYS[:1500], uri, "gallery")
    assert first.write(Silent()) == 1500
    assert first.write(Silent()) == 0
    np.testing.assert_array_equal(first.top_k(QUERIES, 10).rows, exact.top_k(QUERIES, 10).rows)
    first.close()
    moved = ExactStore(np.ascontiguousarray(FEATURES[500:][::-1]))
    keys = np.ascontiguousarray(KEYS[500:][::-1])
    second = MilvusStore(moved, keys, uri, "gallery")
    assert second.write(Silent()) == 500
    for where in (None, np.arange(1500) % 3 == 0, np.arange(1500) < 20):
        found, expected = second.top_k(QUERIES, 10, where), moved.top_k(QUERIES, 10, where)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.scores, expected.scores)
    second.drop()
    second.close()


def test_a_filter_is_told_to_milvus_as_sources_days_and_box(uri: str) -> None:
    rows = np.arange(500)
    places = np.stack([rows / 500, 50 - rows / 500], axis=1)
    attributes = Attributes(rows % 5, 730_000 + rows // 10, places)
    exact = ExactStore(FEATURES[:500])
    store = MilvusStore(exact, KEYS[:500], uri, "filtered", lambda: attributes)
    store.write(Silent())
    for where, condition, meeting in (
        (rows % 5 == 3, "source in [3] and", 100),
        ((rows >= 100) & (rows < 300), "day >= 730010 and day <= 730029 and lon >= 0.2 and lon <= 0.598", 200),
        (rows % 2 == 0, "lon >= 0.0 and lon <= 0.996", 499),
    ):
        said, count = attributes.condition(where)
        assert condition in said
        assert where.sum() <= count <= meeting
        assert len(store._client.query("filtered", filter=said, output_fields=["key"], limit=500)) == count
        found, expected = store.top_k(QUERIES, 10, where), exact.top_k(QUERIES, 10, where)
        np.testing.assert_array_equal(found.rows, expected.rows)
    store.drop()
    store.close()


def test_a_key_is_its_texts_and_no_two_rows_share_one(uri: str) -> None:
    assert (KEYS >= 0).all()
    assert len(np.unique(KEYS)) == 2000
    np.testing.assert_array_equal(row_keys(["image 7"]), KEYS[7:8])
    with pytest.raises(UsageError, match="a key of its own"):
        MilvusStore(ExactStore(FEATURES[:2]), KEYS[[0, 0]], uri, "gallery")


def test_what_milvus_refuses_is_said_in_a_sentence(uri: str, tmp_path: Path) -> None:
    store = MilvusStore(ExactStore(FEATURES), KEYS, uri, "never_made")
    with pytest.raises(CmpaglError, match="Milvus cannot search never_made"):
        store.top_k(QUERIES, 5)
    store.close()
    with pytest.raises(CmpaglError, match="cannot be reached"):
        MilvusStore(ExactStore(FEATURES), KEYS, str(tmp_path / "none" / "a.db"), "gallery")


def test_without_pymilvus_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(UsageError, match=r"pip install 'cmpagl\[milvus\]', or --store exact"):
        MilvusStore(ExactStore(FEATURES), KEYS, "a.db", "gallery")
