"""The API answers as the command line does: the same hits, scores and sentences."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from typer.testing import Result

from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.encoders.cmpagl import CmpaglEncoder
from cmpagl_core.explain.relevance import explain
from cmpagl_core.progress import Silent
from cmpagl_core.runs import open_run
from cmpagl_core.search.answers import document
from cmpagl_core.search.filters import Filters
from cmpagl_core.search.gallery_source import dataset_source, folder_source
from cmpagl_core.search.indexing import build_index
from cmpagl_core.search.narrowing import Narrowed
from cmpagl_core.search.opening import encoder_of, open_searcher
from cmpagl_core.search.query import ImageQuery, ItemQuery, TextQuery, Weighted, added_together
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.serve import answers as answers_module
from cmpagl_core.serve.parameters import SearchRequest
from cmpagl_core.session import Session
from cmpagl_core.workspace import Workspace
from tests.serve.conftest import OpenClient


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_a_text_finds_what_a_searcher_finds(client: TestClient, searcher: Searcher) -> None:
    answer = client.get("/api/search", params={"q": "bright square", "k": 5})
    assert answer.status_code == 200
    content = answer.json()
    hits = searcher.search([TextQuery("bright square")], 5)[0]
    assert content["hits"] == as_json([document(hit) for hit in hits])
    assert content["total"] == 12
    assert content["took_ms"] > 0


def test_scores_are_those_of_the_command_line(
    cmpagl: Callable[..., Result], tiny_run: Path, tmp_path: Path, open_client: OpenClient
) -> None:
    root = tmp_path / "other"
    shutil.copytree(tiny_run.parent, root / "runs")
    shutil.copytree(tiny_run.parent.parent / "data", root / "data")
    told = cmpagl("--workspace", root, "index")
    assert told.exit_code == 0, told.stderr
    arguments = ("a square", "--plus", "2:field", "--minus", "0.5:sea", "--min-score", "-1", "--format", "json")
    told = cmpagl("--workspace", root, "retrieve", *arguments)
    assert told.exit_code == 0, told.stderr
    device: Any = None
    client = open_client(open_searcher(Session(Workspace(root), Silent(), device)))
    asked = {"q": "a square", "plus": "2:field", "minus": "0.5:sea", "min_score": -1, "k": 10}
    ours, theirs = client.get("/api/search", params=asked).json()["hits"], json.loads(told.stdout)
    assert [hit.pop("score") for hit in ours] == pytest.approx([hit.pop("score") for hit in theirs], abs=1e-6)
    assert ours == theirs


def test_every_part_of_a_query_can_be_asked(client: TestClient, searcher: Searcher, tiny_images: Path) -> None:
    picture = tiny_images / "north" / "scene_05.jpg"
    asked = {"q": "a", "plus": ["b", "2:c"], "minus": "d", "plus_like": "scene_03"} | {
        "minus_like": "0.5:scene_01", "image_weight": -0.25,
    }  # fmt: skip
    with picture.open("rb") as file:
        answer = client.post("/api/search", params=asked, files={"image": file})
    parts = [
        Weighted(ImageQuery(picture), -0.25),
        Weighted(TextQuery("b"), 1), Weighted(TextQuery("c"), 2), Weighted(TextQuery("d"), -1),
        Weighted(ItemQuery("scene_03"), 1), Weighted(ItemQuery("scene_01"), -0.5),
    ]  # fmt: skip
    expected = searcher.search([added_together(TextQuery("a"), parts)], 20)[0]
    assert answer.json()["hits"] == as_json([document(hit) for hit in expected])


def test_an_image_finds_itself(client: TestClient, tiny_images: Path) -> None:
    with (tiny_images / "north" / "scene_05.jpg").open("rb") as file:
        hits = client.post("/api/search", params={"k": 2}, files={"image": ("mine.jpg", file)}).json()["hits"]
    assert hits[0]["image_id"] == "scene_05"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-6)
    again = client.get("/api/search", params={"like": "scene_05", "k": 2}).json()["hits"]
    assert [hit["image_id"] for hit in again] == [hit["image_id"] for hit in hits]


def test_filters_come_before_the_search(client: TestClient, searcher: Searcher) -> None:
    content = client.get("/api/search", params={"q": "x", "path": "*/north/*", "k": 3}).json()
    mask = Filters(path="*/north/*").mask(searcher.gallery)
    expected = searcher.search([TextQuery("x")], 3, Narrowed(mask))[0]
    assert content["hits"] == as_json([document(hit) for hit in expected])
    assert content["total"] == 6
    floor = content["hits"][1]["score"]
    cut = client.get("/api/search", params={"q": "x", "path": "*/north/*", "min_score": floor}).json()
    assert (len(cut["hits"]), cut["total"]) == (2, 2)
    nothing = client.get("/api/search", params={"q": "x", "path": "nowhere"}).json()
    assert (nothing["hits"], nothing["total"]) == ([], 0)
    assert nothing["notes"] == ["the filters leave no image"]


def test_an_answer_is_read_page_by_page(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "_FIRST_DEPTH", 5)
    whole = client.get("/api/search", params={"q": "x", "k": 12}).json()["hits"]
    for start in (0, 5, 10):
        page = client.get("/api/search", params={"q": "x", "k": 5, "offset": start}).json()
        assert page["hits"] == whole[start : start + 5]
        assert page["total"] == page["reachable"] == 12


def test_copies_are_hidden(open_client: OpenClient, fake_encoder: Any, tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    folder.mkdir()
    for number, colour in enumerate(((200, 10, 10), (200, 10, 10), (10, 10, 200))):
        Image.new("RGB", (40, 40), colour).save(folder / f"{number}.png")
    encoder = fake_encoder()
    index = build_index(encoder, folder_source(folder), tmp_path / "index", Silent()).index
    client = open_client(Searcher(index, lambda: encoder, Silent()))
    content = client.get("/api/search", params={"like": "0.png", "diverse": "true"}).json()
    assert [hit["image_id"] for hit in content["hits"]] == ["0.png", "2.png"]
    assert content["total"] == 2


def test_many_clients_get_the_answers_that_each_gets_alone(client: TestClient) -> None:
    texts = [f"text {number}" for number in range(40)]
    alone = [client.get("/api/search", params={"q": text, "k": 4}).json()["hits"] for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda text: client.get("/api/search", params={"q": text, "k": 5}).json(), texts))
    assert [one["hits"][:4] for one in together] == alone


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("", 400, "no query is given"),
        ("q=%20", 400, "the query is blank"),
        ("q=a&like=b", 400, "q and like are two queries"),
        ("minus=a", 400, "no query is given"),
        ("q=a&plus=0:b", 400, "the weight in '0:b' is not between 0 and 100"),
        ("q=a&plus=a&minus=2:a", 400, "the parts of the query cancel each other out"),
        ("q=a&k=0", 400, "k is '0'; give a whole number from 1 to 1000"),
        ("q=a&k=1_0", 400, "k is '1_0'"),
        ("q=a&k=5&k=6", 400, "k is given 2 times"),
        ("q=a&min_score=nan", 400, "min_score is 'nan'"),
        ("q=a&diverse=yes", 400, "diverse is 'yes'; write true or false"),
        ("q=a&ofset=3", 400, "there is no parameter 'ofset'; did you mean offset?"),
        ("q=a&bbox=1,2,3", 400, "--bbox '1,2,3' is not 4 numbers"),
        ("q=a&bbox=1,2,3,4", 422, "index tiny has no image with coordinates"),
        ("q=a&near=1,2", 400, "--near and --within belong together"),
        ("q=a&from=2024-13", 400, "'2024-13' is not a date"),
        ("q=a&from=2024", 422, "index tiny has no image with a date"),
        ("q=a&rerank=itm", 400, "fake has no ITM head"),
        ("q=a&rerank=all", 400, "rerank is 'all'; write none or itm"),
        ("q=a&bands=1", 400, "bands is about the image of a POST"),
        ("like=nothing", 422, "index tiny has no image 'nothing'; give an image id, or a row from 0 on"),
        ("q=" + "a" * 5000, 400, "q has 5,000 characters"),
    ],
)
def test_errors_are_the_command_lines_sentences(client: TestClient, query: str, status: int, words: str) -> None:
    answer = client.get(f"/api/search?{query}")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert words in answer.json()["detail"]


def test_an_item_is_known_by_its_id_or_row(client: TestClient, searcher: Searcher) -> None:
    by_id = client.get("/api/items/scene_05").json()
    assert by_id["image_id"] == "scene_05"
    assert by_id["captions"] == ["a square of kind 2", "field 5 with a bright square in it"]
    assert client.get(f"/api/items/{by_id['row']}").json() == by_id
    missing = client.get("/api/items/nobody")
    assert (missing.status_code, missing.json()["detail"]) == (
        404, "index tiny has no image 'nobody'; give an image id, or a row from 0 on",
    )  # fmt: skip


def test_thumbnails_are_small_jpegs(client: TestClient) -> None:
    hit = client.get("/api/search", params={"q": "a", "k": 1, "details": "true"}).json()["hits"][0]
    assert hit["footprint"] is None
    answer = client.get(hit["thumbnail"], params={"size": 32})
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert (image.format, image.size) == ("JPEG", (32, 32))
    assert client.get(hit["thumbnail"], params={"size": 8}).status_code == 400


def test_an_id_with_any_characters_has_a_thumbnail(open_client: OpenClient, fake_encoder: Any, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    names = ["a #1?.png", "sub/50%.png", "ü/ß&=+.png", "x..y.png"]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (20, 20), (60 * number, 5, 9)).save(folder / name)
    encoder = fake_encoder()
    index = build_index(encoder, folder_source(folder), tmp_path / "index", Silent()).index
    client = open_client(Searcher(index, lambda: encoder, Silent()))
    hits = client.get("/api/search", params={"q": "a", "details": "true"}).json()["hits"]
    assert {hit["image_id"] for hit in hits} == set(names)
    assert [client.get(hit["thumbnail"]).status_code for hit in hits] == [200] * len(hits)
    for hit in hits:
        assert client.get(f"/api/items/{quote(hit['image_id'], safe='')}").json()["row"] == hit["row"]


def test_the_indexes_of_the_workspace_are_listed(client: TestClient) -> None:
    (only,) = client.get("/api/indexes").json()
    assert (only["name"], only["images"], only["captions"], only["open"]) == ("tiny", 12, 24, True)


def test_an_explanation_needs_an_itm_head(client: TestClient) -> None:
    answer = client.get("/api/explain", params={"q": "a", "id": "scene_05"})
    assert (answer.status_code, answer.json()["detail"]) == (
        400, "fake has no ITM head, which an explanation needs; index with a run",
    )  # fmt: skip
    assert client.get("/api/explain", params={"q": "a"}).json()["detail"].startswith("id is missing")


def test_an_explanation_is_that_of_the_command_line(tiny_run: Path, tmp_path: Path, open_client: OpenClient) -> None:
    import torch

    run, cpu = open_run(tiny_run), torch.device("cpu")
    index = build_index(
        CmpaglEncoder(run, Silent()),
        dataset_source(open_prepared(Path(run.info.dataset_root))),
        tmp_path / "i",
        Silent(),
    ).index
    session = Session(Workspace(tiny_run.parent.parent), Silent(), lambda: cpu)
    client = open_client(Searcher(index, lambda: encoder_of(index, session), Silent()), session=session)
    assert "&#34;explains&#34;: true" in client.get("/").text
    found = client.get("/api/explain", params={"q": "a square", "id": "scene_05"}).json()
    expected = explain(run.load(cpu), index.image(5).path, "a square")
    assert found["cosine"] == pytest.approx(expected.cosine, abs=1e-6)
    assert found["match_percent"] == pytest.approx(100 * expected.match_probability, abs=1e-4)
    assert [word["word"] for word in found["words"]] == ["a", "square"]
    for overlay in (found["overlay"], *(word["overlay"] for word in found["words"])):
        with Image.open(io.BytesIO(base64.b64decode(overlay.removeprefix("data:image/png;base64,")))) as image:
            assert image.size == (80, 80)
    hits = client.get("/api/search", params={"q": "a square", "rerank": "itm", "k": 3}).json()["hits"]
    assert len(hits) == 3


def test_hits_lie_inside_a_polygon_that_is_sent(client: TestClient) -> None:
    area = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}
    answer = client.post("/api/search?q=a", files={"inside": ("area.json", json.dumps(area))})
    assert answer.json()["detail"].startswith("index tiny has no image with coordinates")


def test_scores_of_the_whole_gallery_are_exact(client: TestClient, searcher: Searcher) -> None:
    hits = client.get("/api/search", params={"q": "everything", "k": 12}).json()["hits"]
    query = searcher.encoder.encode_texts(["everything"])[0].astype(np.float64)
    exact = np.sort(searcher.gallery.image_features.astype(np.float64) @ query)[::-1]
    assert [hit["score"] for hit in hits] == pytest.approx(exact.tolist(), abs=1e-9)


def test_only_the_last_rankings_are_kept(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "_KEPT_RANKINGS", 2)
    answers = answers_module.Answers(searcher)
    answers.start()
    for text in ("a", "b", "a", "c", "d"):
        asyncio.run(answers.search(SearchRequest(TextQuery(text), Filters())))
    answers.stop()
    assert [key[0].words for key in answers._rankings] == ["c", "d"]
