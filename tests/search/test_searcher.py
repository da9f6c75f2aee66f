"""A Searcher answers many queries of every kind as it answers each alone, and makes its encoder once, when needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.progress import Silent
from cmpagl_core.search import searcher as module
from cmpagl_core.search.gallery_source import dataset_source, folder_source
from cmpagl_core.search.indexing import build_index
from cmpagl_core.search.query import ImageQuery, TextQuery, read_queries
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.search.stores.exact import ExactStore
from cmpagl_core.search.stores.int8 import Int8Store


@pytest.fixture
def encoder(fake_encoder: Any) -> Any:
    return fake_encoder()


@pytest.fixture
def searcher(encoder: Any, tiny_prepared: Path, tmp_path: Path) -> Searcher:
    source = dataset_source(open_prepared(tiny_prepared))
    return Searcher(build_index(encoder, source, tmp_path / "index", Silent()).index, lambda: encoder, Silent())


def test_many_queries_get_the_answers_that_each_gets_alone(searcher: Searcher, tiny_images: Path) -> None:
    queries = [
        TextQuery("a square"),
        ImageQuery(tiny_images / "north" / "scene_05.jpg"),
        TextQuery("field 3"),
        TextQuery("a square"),
        ImageQuery(tiny_images / "south" / "scene_02.jpg"),
    ]
    together = searcher.search(queries, 4)
    assert together == [searcher.search([query], 4)[0] for query in queries]
    assert together[1][0].image.image_id == "scene_05"
    assert together[1][0].score == pytest.approx(1.0, abs=1e-6)
    captions = searcher.search_captions(queries, 3)
    assert captions == [searcher.search_captions([query], 3)[0] for query in queries]


def test_hits_are_the_nearest_by_cosine(searcher: Searcher, encoder: Any) -> None:
    gallery = searcher.gallery
    scores = gallery.image_features.astype(np.float64) @ encoder.encode_texts(["bright"])[0].astype(np.float64)
    best = np.argsort(-scores)[:5]
    hits = searcher.search([TextQuery("bright")], 5)[0]
    assert [hit.image for hit in hits] == [gallery.image(row) for row in best.tolist()]
    assert [hit.score for hit in hits] == pytest.approx(scores[best].tolist())
    assert [hit.captions for hit in hits] == [tuple(gallery.captions_of(row)) for row in best.tolist()]
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]


def test_the_encoder_is_made_once_and_only_when_a_query_comes(searcher: Searcher, encoder: Any) -> None:
    made = []
    other = Searcher(searcher.gallery, lambda: made.append(1) or encoder, Silent())  # type: ignore[func-returns-value]
    assert made == []
    other.search([TextQuery("a")], 1)
    other.search([TextQuery("b")], 1)
    assert made == [1]


def test_many_queries_are_answered_from_an_int8_store_in_the_same_way(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SCANNED_ROWS", 12)
    monkeypatch.setattr(module, "_QUERIES_AT_ONCE", 7)
    queries = [TextQuery(f"query {number}") for number in range(300)]
    exact = searcher.search(queries, 3)
    assert isinstance(searcher._images, ExactStore)
    for _ in range(3):
        assert searcher.search(queries, 3) == exact
    assert isinstance(searcher._images, Int8Store)
    assert len(searcher._images) == 12


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("airport near sea\n\n  a river \n", ["airport near sea", "a river"]),
        ('\ufeff{"text": "a"}\r\n{"text": "b", "id": 4}', ["a", "b"]),
        ("one with a \u2028 in it", ["one with a \u2028 in it"]),
    ],
)
def test_queries_are_read_one_a_line(tmp_path: Path, text: str, expected: list[str]) -> None:
    (tmp_path / "q").write_text(text, encoding="utf-8", newline="")
    assert [query.text for query in read_queries(tmp_path / "q")] == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no queries; write one per line"),
        (b"\n \n", "has no queries"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b'{"text": "a"}\n\n{"text": 3}', r"q:3: there is no text"),
        (b'{"text": "a"}\nplain', r"q:2: not valid JSON"),
        (b'{"text": " "}', r"q:1: there is no text"),
        (b"{" * 100_000, r"q:1: not valid JSON"),
        (b'{"text": [' + b"[" * 100_000, r"q:1: not valid JSON"),
    ],
)
def test_a_file_of_no_queries_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "q").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_queries(tmp_path / "q")
    with pytest.raises(DataError, match="none does not exist"):
        read_queries(tmp_path / "none")


def test_queries_that_cannot_be_answered_are_refused(
    searcher: Searcher, encoder: Any, tiny_images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="the query is blank"):
        TextQuery(" \n")
    with pytest.raises(DataError, match=r"none\.jpg does not exist"):
        searcher.search([ImageQuery(tmp_path / "none.jpg")], 1)
    with pytest.raises(UsageError, match="has no ITM head"):
        searcher.search_with_itm(TextQuery("a"), 1)
    with pytest.raises(UsageError, match="compares a text with images"):
        searcher.search_with_itm(ImageQuery(tmp_path / "none.jpg"), 1)
    plain = build_index(encoder, folder_source(tiny_images), tmp_path / "plain", Silent()).index
    with pytest.raises(DataError, match="gallery plain has no captions"):
        Searcher(plain, lambda: encoder, Silent()).search_captions([TextQuery("a")], 1)
