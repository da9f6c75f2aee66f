"""The evaluation view has the recalls of `recall`, by split and scene, and puts two indexes side by side."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.evaluation.recall import Matches, recall
from cmpagl_core.progress import Silent
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.search.gallery_source import dataset_source, folder_source
from cmpagl_core.search.indexing import build_index
from cmpagl_core.search.searcher import Searcher
from tests.serve.conftest import OpenClient


def test_recalls_are_those_of_the_split(client: TestClient, searcher: Searcher, tiny_prepared: Path) -> None:
    found = client.get("/api/evaluation").json()
    split = open_prepared(tiny_prepared).split("test")
    assert (found["split"], found["images"], found["captions"]) == ("test", 4, 8)
    assert found["splits"] == ["train", "val", "test", "all"]
    gallery = searcher.gallery
    rows = [searcher.row_of(image_id) for image_id in split.image_ids]
    texts = searcher.encoder.encode_texts(list(split.captions))
    expected = recall(
        ScoreMatrix.from_features(gallery.image_features[rows], texts), Matches.own(split.caption_image, len(split))
    )
    (run,) = found["runs"]
    assert run["mr"] == pytest.approx(expected.mr)
    assert run["t2i"]["r1"] == pytest.approx(expected.t2i.r1)
    assert run["i2t"]["r5"] == pytest.approx(expected.i2t.r5)


def test_scenes_are_parts_of_the_whole(client: TestClient) -> None:
    found = client.get("/api/evaluation?split=all").json()
    assert {(row["scene"], row["images"]) for row in found["scenes"]} == {("north", 6), ("south", 6)}
    for key in ("r1", "r5", "r10"):
        parts = [row["runs"][0]["t2i"][key] for row in found["scenes"]]
        assert np.mean(parts) == pytest.approx(found["runs"][0]["t2i"][key])


def test_the_worst_queries_come_first(client: TestClient, searcher: Searcher) -> None:
    found = client.get("/api/evaluation?split=all").json()
    ranks = [one["runs"][0]["rank"] for one in found["worst"]]
    assert ranks == sorted(ranks, reverse=True)
    worst = found["worst"][0]
    assert worst["caption"] in searcher.gallery.captions_of(worst["own"])
    hits = client.get("/api/search", params={"q": worst["caption"], "k": 4, "details": "true"}).json()["hits"]
    assert worst["runs"][0]["found"] == [hit["row"] for hit in hits]
    assert found["items"][str(worst["own"])]["row"] == worst["own"]


def test_two_indexes_stand_side_by_side(
    client: TestClient, fake_encoder: Any, tiny_prepared: Path, tiny_images: Path, tmp_path: Path
) -> None:
    indexes = tmp_path / "workspace" / "indexes"
    build_index(fake_encoder("other"), dataset_source(open_prepared(tiny_prepared)), indexes / "other", Silent())
    build_index(fake_encoder("other"), folder_source(tiny_images), indexes / "folder", Silent())
    alone = client.get("/api/evaluation").json()
    found = client.get("/api/evaluation?against=other").json()
    assert [run["index"] for run in found["runs"]] == ["tiny", "other"]
    assert found["runs"][0] == alone["runs"][0]
    assert found["runs"][1]["mr"] != found["runs"][0]["mr"]
    assert all(len(one["runs"]) == 2 for one in (*found["worst"], *found["scenes"]))
    assert "other" in client.get("/evaluation").text
    refused = client.get("/api/evaluation?against=folder")
    assert (refused.status_code, refused.json()["detail"]) == (
        409, "indexes tiny and folder are not of the same data; index one data set with both models",
    )  # fmt: skip
    assert client.get("/api/evaluation?against=../tiny").status_code == 400


def test_what_cannot_be_measured_says_why(
    open_client: OpenClient, fake_encoder: Any, tiny_prepared: Path, tiny_images: Path, tmp_path: Path
) -> None:
    encoder = fake_encoder()
    index = build_index(encoder, folder_source(tiny_images), tmp_path / "plain", Silent()).index
    client = open_client(Searcher(index, lambda: encoder, Silent()))
    assert client.get("/api/evaluation").json()["detail"].startswith("index plain has no captions here")
    assert client.get("/api/evaluation?split=test").json()["detail"].startswith("the data set of index plain is not")
    copy = tmp_path / "copy"
    shutil.copytree(tiny_prepared, copy)
    index = build_index(encoder, dataset_source(open_prepared(copy)), tmp_path / "gone", Silent()).index
    shutil.rmtree(copy)
    found = open_client(Searcher(index, lambda: encoder, Silent())).get("/api/evaluation").json()
    assert (found["split"], found["images"]) == ("all", 12)
