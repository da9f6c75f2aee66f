"""An index with a store: made, updated and opened with it, measured against exact search, and refused under a bar."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from cmpagl_core.errors import DataError, GuardError, UsageError
from cmpagl_core.progress import Silent
from cmpagl_core.search.gallery_source import folder_source
from cmpagl_core.search.index import GalleryIndex, open_index
from cmpagl_core.search.indexing import BuiltIndex, build_index
from cmpagl_core.search.query import TextQuery
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.search.store_files import StoreChoice, open_store
from cmpagl_core.search.stores.faiss import FaissStore
from cmpagl_core.search.stores.milvus import MilvusStore
from tests.conftest import FakeEncoder

Make = Callable[..., BuiltIndex]


@pytest.fixture
def folder(tiny_images: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(tiny_images, tmp_path / "images"))


@pytest.fixture
def make(folder: Path, tmp_path: Path) -> Make:
    def make(store: str, min_recall: float = 0.0) -> BuiltIndex:
        choice = StoreChoice.parse(store, min_recall)
        return build_index(FakeEncoder(), folder_source(folder), tmp_path / "index", Silent(), store=choice)

    return make


def asked(index: GalleryIndex) -> list[list[tuple[str, float]]]:
    searcher = Searcher(index, FakeEncoder, Silent())
    return [
        [(hit.image.image_id, hit.score) for hit in hits]
        for hits in searcher.search([TextQuery("red pier"), TextQuery("blue")], 5)
    ]


@pytest.fixture(params=["faiss", "milvus"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "faiss":
        return "faiss"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, on import
        import pymilvus  # noqa: F401
    return f"milvus:{tmp_path / 'images.db'}"


def test_a_store_answers_as_exact_search_does_also_after_an_update(make: Make, folder: Path, store: str) -> None:
    exact = asked(make("exact").index)
    built = make(store)
    assert (built.encoded, built.recall, built.index.info.store) == (0, 1.0, store)
    assert isinstance(open_store(built.index), FaissStore if store == "faiss" else MilvusStore)
    assert asked(built.index) == exact
    first, second = sorted(folder.rglob("*.jpg"))[:2]
    first.unlink()
    second.rename(folder / "aaa.jpg")  # other rows
    again = make(store)
    assert (again.encoded, len(again.index)) == (0, 11)
    assert asked(again.index) == asked(make("exact").index)
    assert not list(again.index.root.glob("*.faiss"))  # of the index before


def test_a_faiss_index_is_added_to_and_not_built_again(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("faiss")
    (folder / "zzz.jpg").write_bytes(next(folder.rglob("scene_03.jpg")).read_bytes()[:-2] + b"\xff\xd9")
    monkeypatch.setattr(FaissStore, "build", None)
    assert len(make("faiss").index) == 13


def test_a_store_under_the_users_bar_is_refused_and_changes_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make("exact").index
    monkeypatch.setattr("cmpagl_core.search.stores.candidates.measured_recall", lambda *_: 0.5)
    with pytest.raises(GuardError, match=r"faiss store finds 50\.0 % of the exact top 10, less than the 90\.0 %"):
        make("faiss", 0.9)
    assert open_index(before.root).info.store == "exact"


def test_a_missing_faiss_file_is_named(make: Make) -> None:
    index = make("faiss").index
    assert index.faiss is not None
    index.faiss[0].unlink()
    with pytest.raises(DataError, match=r"faiss-.*\.faiss does not exist"):
        open_index(index.root)


@pytest.mark.parametrize("text", ["", "hnsw", "milvus", "milvus:", "faiss:x"])
def test_an_unknown_store_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not known; write exact, faiss, milvus:FILE"):
        StoreChoice.parse(text)
