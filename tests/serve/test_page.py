"""The page's HTML and files, and what it saves, without a browser."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import zipfile
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from cmpagl_core.progress import Silent
from cmpagl_core.search.answers import document, geojson
from cmpagl_core.search.gallery_source import folder_source
from cmpagl_core.search.indexing import build_index
from cmpagl_core.search.query import TextQuery
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.serve.guard import Access
from cmpagl_core.serve.openapi import description
from cmpagl_core.serve.page import MODULES
from tests.conftest import REPOSITORY
from tests.serve.conftest import PORT, OpenClient

STATIC = Path(str(resources.files("cmpagl_core.serve") / "static"))


class Attributes(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, name, value or "") for name, value in attrs]


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/").text
    names = {name for _, name, _ in Attributes(page).found}
    assert "style" not in names
    assert not any(name.startswith("on") for name in names)
    assert re.findall(r"<script[^>]*>([^<]+)</script>|<style", page) == []
    addresses = [value for _, name, value in Attributes(page).found if name in ("src", "href")]
    assert all(address.startswith(("/", "#")) for address in addresses)
    for address in addresses:
        if address.startswith("/static/"):
            answer = client.get(address)
            assert answer.status_code == 200, address
            assert "immutable" in answer.headers["cache-control"]  # another content has another address


def test_our_modules_load_nothing_from_elsewhere() -> None:
    for path in (*STATIC.glob("*.js"), *STATIC.glob("*.css")):
        assert not re.search(r"https?://|//cdn|eval\(|innerHTML|document\.write", path.read_text()), path.name
    imported = {name for path in STATIC.glob("*.js") for name in re.findall(r'"\./(\w+\.js)"', path.read_text())}
    assert imported == {path.name for path in STATIC.glob("*.js")} - {"app.js", "evaluation.js"}
    assert set(MODULES) <= imported


def test_licences_are_shipped_with_what_is_not_ours() -> None:
    assert "Agafonkin" in (STATIC / "leaflet" / "LICENSE").read_text()
    assert json.loads((STATIC / "land-110m.json").read_text())["geometry"]["type"] == "MultiPolygon"


def test_examples_are_captions_of_the_index(client: TestClient) -> None:
    page = client.get("/").text
    examples = re.findall(r'<a href="/\?q=[^"]*">([^<]+)</a>', page)
    assert 1 <= len(examples) <= 6
    captions = {"a square of kind"} | {"field"}
    assert all(any(caption in example for caption in captions) for example in examples)
    assert "Search 12 images" in page


def test_text_of_an_index_is_escaped(open_client: OpenClient, fake_encoder: Any, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.new("RGB", (20, 20), (9, 5, 9)).save(folder / '"><img src=x onerror=alert(1)>.png')
    encoder = fake_encoder()
    index = build_index(encoder, folder_source(folder), tmp_path / "index", Silent()).index
    page = open_client(Searcher(index, lambda: encoder, Silent())).get("/").text
    assert "<img src=x" not in page
    assert ("img", "onerror", "alert(1)") not in Attributes(page).found


def test_a_tile_server_reaches_the_page(open_client: OpenClient) -> None:
    page = open_client(access=Access(port=PORT, tiles="https://t.example/{z}/{x}/{y}.png")).get("/").text
    (setup,) = [value for tag, name, value in Attributes(page).found if name == "data-setup"]
    assert json.loads(setup)["tiles"] == "https://t.example/{z}/{x}/{y}.png"


@pytest.fixture
def chosen(client: TestClient) -> list[dict[str, Any]]:
    return client.get("/api/search", params={"q": "a", "k": 3, "details": "true"}).json()["hits"]  # type: ignore[no-any-return]


def export(client: TestClient, format: str, hits: list[dict[str, Any]]) -> bytes:
    body = {"format": format, "hits": [{"row": hit["row"], "score": hit["score"]} for hit in hits]}
    answer = client.post("/api/export", json=body)
    assert answer.status_code == 200, answer.text
    assert re.search(r'attachment; filename="hits-\w+\.\w+"', answer.headers["content-disposition"])
    return answer.content


def test_text_exports_are_those_of_retrieve(
    client: TestClient, searcher: Searcher, chosen: list[dict[str, Any]]
) -> None:
    hits = searcher.search([TextQuery("a")], 3)[0]
    assert export(client, "paths", chosen).decode() == "".join(f"{hit.image.path}\n" for hit in hits)
    assert json.loads(export(client, "geojson", chosen)) == json.loads(geojson(hits))
    rows = list(csv.DictReader(io.StringIO(export(client, "csv", chosen).decode())))
    assert [row["image_id"] for row in rows] == [hit.image.image_id for hit in hits]
    assert [float(row["score"]) for row in rows] == [document(hit)["score"] for hit in hits]


def test_crops_are_images_in_a_zip(client: TestClient, chosen: list[dict[str, Any]]) -> None:
    with zipfile.ZipFile(io.BytesIO(export(client, "zip", chosen))) as archive:
        assert archive.namelist() == [f"{hit['rank']:03d}-{hit['image_id']}.png" for hit in chosen]
        with Image.open(io.BytesIO(archive.read(archive.namelist()[0]))) as image:
            assert image.size == (80, 80)


def test_a_geopackage_has_a_row_for_each_hit(client: TestClient, chosen: list[dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("pyogrio")
    (tmp_path / "hits.gpkg").write_bytes(export(client, "gpkg", chosen))
    with sqlite3.connect(tmp_path / "hits.gpkg") as database:
        rows = database.execute("SELECT image_id, rank FROM hits ORDER BY rank").fetchall()
    database.close()
    assert rows == [(hit["image_id"], hit["rank"]) for hit in chosen]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "the body is no export"),
        ({"format": "exe", "hits": [{"row": 0, "score": 1}]}, "format is 'exe'"),
        ({"format": "csv", "hits": []}, "0 hits are chosen; choose 1 to 1,000"),
        ({"format": "zip", "hits": [{"row": 0, "score": 1}] * 201}, "201 hits are chosen; choose 1 to 200"),
        ({"format": "csv", "hits": [{"row": 12, "score": 1}]}, "a hit is not in the index"),
        ({"format": "csv", "hits": [{"row": True, "score": 1}]}, "a hit is not in the index"),
        ({"format": "csv", "hits": [{"row": 0, "score": "x"}]}, "the body is no export"),
    ],
)
def test_other_exports_are_refused(client: TestClient, body: Any, words: str) -> None:
    answer = client.post("/api/export", json=body)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(words)


def test_the_addresses_of_its_documentation_are_answered(client: TestClient) -> None:
    page = (REPOSITORY / "docs" / "serve.md").read_text()
    asked = re.findall(r"curl (?:-o \S+ )?'http://127\.0\.0\.1:8230([^']+)'", page)
    assert len(asked) >= 7
    assert [address for address in asked if client.get(address).status_code != 200] == []
    listed = set(re.findall(r"`(?:GET|POST) (/api/[^`?]+)", page))
    assert listed == set(description()["paths"])
