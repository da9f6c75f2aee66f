"""Indexes are listed, verified, pruned and merged without encoding anything that is known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmpagl_core.errors import DataError, MismatchError, UsageError
from cmpagl_core.progress import Silent
from cmpagl_core.search import manage
from cmpagl_core.search.gallery_source import dataset_source, folder_source
from cmpagl_core.search.index import GalleryIndex, open_index
from cmpagl_core.search.indexing import build_index
from cmpagl_core.search.manage import list_indexes, merge_indexes, prune_index, verify_index
from cmpagl_core.search.query import TextQuery
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.session import Session
from cmpagl_core.workspace import Workspace
from tests.conftest import Cmpagl, FakeEncoder, Told

Make = Callable[..., GalleryIndex]


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(manage, "encoder_of", lambda index, session: FakeEncoder())

    def no_device() -> Any:
        raise AssertionError("no model is needed")

    return Session(Workspace(tmp_path), Told(), no_device)


@pytest.fixture
def make(tiny_images: Path, tmp_path: Path) -> Make:
    """An index of a folder of its own, by its name."""

    def make(name: str, encoder: Any = None) -> GalleryIndex:
        folder = tmp_path / "images" / name
        if not folder.exists():
            shutil.copytree(tiny_images, folder)
        source = folder_source(folder)
        return build_index(encoder or FakeEncoder(), source, tmp_path / "indexes" / name, Silent()).index

    return make


def test_indexes_are_listed_the_newest_first_and_a_broken_one_is_named(session: Session, make: Make) -> None:
    make("north"), make("south")
    broken = make("west").root
    (broken / "index.json").write_text("{}")
    found = list_indexes(session.workspace, session.progress)
    assert [one.info.name for one in found] == ["south", "north"]
    assert found[0].images == 12
    assert found[0].bytes > 0
    assert isinstance(session.progress, Told)
    assert "west" in session.progress.messages[0]


def test_an_index_is_verified_against_files_and_a_new_encoding(session: Session, make: Make) -> None:
    index = make("north")
    sound = verify_index(session, index, samples=5)
    assert (sound.is_sound, sound.sampled) == (True, 5)
    assert sound.lowest_cosine == pytest.approx(1.0, abs=1e-6)
    first, second = sorted(Path(path) for path in index.paths)[:2]
    first.unlink()
    second.write_bytes(second.read_bytes() + b"more")
    found = verify_index(session, index, samples=0)
    assert (len(found.gone), len(found.changed), found.sampled, found.lowest_cosine) == (1, 1, 0, None)
    assert not found.is_sound


def test_features_that_differ_are_not_sound(session: Session, make: Make) -> None:
    index = make("north")
    assert not verify_index(session, replace(index, image_features=index.image_features[::-1]), samples=12).is_sound


def test_pruning_drops_what_is_gone_and_adds_nothing(session: Session, make: Make) -> None:
    index = make("north")
    paths = sorted(Path(path) for path in index.paths)
    paths[0].unlink()
    paths[1].touch()  # another time, the same content
    shutil.copyfile(paths[2], paths[2].with_name("new.jpg"))
    pruned = prune_index(session, index)
    assert (pruned.encoded, len(pruned.index)) == (0, 11)
    assert "new.jpg" not in " ".join(pruned.index.paths)
    for path in paths[1:]:
        path.unlink()
    with pytest.raises(DataError):
        prune_index(session, pruned.index)
    assert len(open_index(index.root)) == 11


def test_merged_indexes_answer_as_one_made_of_all(session: Session, make: Make, tmp_path: Path) -> None:
    north, south = make("north"), make("south")
    merged = merge_indexes(session, [north, south], "both")
    assert (merged.encoded, len(merged.index), merged.index.info.kind) == (0, 24, "merged")
    assert {name.split("/")[0] for name in merged.index.image_ids} == {"north", "south"}  # their own names are shared
    hits = Searcher(merged.index, FakeEncoder, Silent()).search([TextQuery("red pier")], 24)[0]
    whole = build_index(FakeEncoder(), folder_source(tmp_path / "images"), tmp_path / "whole", Silent()).index
    expected = Searcher(whole, FakeEncoder, Silent()).search([TextQuery("red pier")], 24)[0]
    assert [hit.score for hit in hits] == [hit.score for hit in expected]
    again = merge_indexes(session, [merged.index, north], "thrice")
    assert len(again.index) == 24  # each place once


def test_merging_keeps_captions(session: Session, make: Make, tiny_prepared: Path, tmp_path: Path) -> None:
    from cmpagl_core.datasets.prepared import open_prepared

    source = dataset_source(open_prepared(tiny_prepared))
    captioned = build_index(FakeEncoder(), source, tmp_path / "indexes" / "captioned", Silent()).index
    merged = merge_indexes(session, [make("north"), captioned], "both").index
    assert len(merged.caption_text) == len(captioned.caption_text) == 24
    row = list(merged.paths).index(captioned.paths[3])
    assert merged.captions_of(row) == captioned.captions_of(3)
    np.testing.assert_array_equal(np.sort(merged.text_features, axis=0), np.sort(captioned.text_features, axis=0))


def test_what_cannot_be_merged_is_refused(session: Session, make: Make) -> None:
    north = make("north")
    with pytest.raises(UsageError, match="pass two indexes or more"):
        merge_indexes(session, [north], "both")
    with pytest.raises(UsageError, match="there is an index north already"):
        merge_indexes(session, [north, make("south")], "north")
    with pytest.raises(MismatchError, match="north and west have features of different models or preprocessing"):
        merge_indexes(session, [north, make("west", FakeEncoder("another"))], "both")


def test_the_commands_show_what_they_did(cmpagl: Cmpagl, make: Make) -> None:
    make("north"), make("south")

    def told(*words: str) -> Any:
        result = cmpagl("indexes", *words, "--format", "json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    assert {row["name"] for row in told("list")} == {"north", "south"}
    assert told("info", "north")["store"] == "exact"
    assert told("merge", "north", "south", "--name", "both")[0]["images"] == 24
    next(Path(path) for path in open_index(Path("indexes/north")).paths).unlink()
    refused = cmpagl("indexes", "verify", "north", "--samples", "0", "--format", "json")
    assert refused.exit_code == 5
    assert json.loads(refused.stdout)["sound"] is False
    assert told("prune", "north")[0] == {"name": "north", "images": 11, "dropped": 1}
    assert told("verify", "north", "--samples", "0")["sound"] is True
