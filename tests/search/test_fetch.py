"""Images by address: a STAC API, a static catalogue and COGs on a server of this machine, of which little is read."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest
import rasterio
from PIL import Image

from cmpagl_core.errors import DataError
from cmpagl_core.imagery import remote_copy
from cmpagl_core.imagery.remote_file import HttpFile, check_url
from cmpagl_core.progress import Silent
from cmpagl_core.search.fetch import Fetched, fetch_images
from cmpagl_core.search.stac import ItemQuery, catalogue_assets
from tests.conftest import Cmpagl
from tests.imagery.making import write

PLACED = {"crs": "EPSG:4326", "transform": rasterio.Affine(1e-4, 0, 12, 0, -1e-4, 56)}
BOX = (12.02, 55.95, 12.03, 55.96)  # 100 x 100 of 1,024 x 1,024 pixels


@dataclass
class Served:
    """A server of a folder that answers ranges; pages: JSON by path. It counts what it sends of each file."""

    root: Path
    pages: dict[str, Any] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""
    elsewhere: str = ""  # whom a search names for its next page


def handler(served: Served) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # its base's name
            served.asked.append(self.path)
            parts = urlsplit(self.path)
            if parts.path in served.moved:
                self.answer(302, b"", {"Location": served.moved[parts.path]})
            elif parts.path == "/search":
                self.answer(200, json.dumps(self.search(parse_qs(parts.query))).encode())
            elif parts.path in served.pages:
                self.answer(200, json.dumps(served.pages[parts.path]).encode())
            elif (served.root / parts.path[1:]).is_file():
                self.file(served.root / parts.path[1:])
            else:
                self.answer(404, b"")

        def search(self, query: dict[str, list[str]]) -> Any:
            """Two pages of one item each, of which the second is linked."""
            items = served.pages["items"]
            if "collections" in query:
                items = [one for one in items if one["collection"] in query["collections"][0].split(",")]
            at = int(query.get("at", ["0"])[0])
            said = urlencode({**{key: value[0] for key, value in query.items()}, "at": at + 1})
            following = {"rel": "next", "href": f"{served.elsewhere or served.url}/search?{said}"}
            links = [following] if at + 1 < len(items) else []
            return {"type": "FeatureCollection", "features": items[at : at + 1], "links": links}

        def file(self, path: Path) -> None:
            content, etag = path.read_bytes(), {"ETag": f'"{path.stat().st_mtime_ns}"'}
            said = self.headers.get("Range")
            if said is None:
                self.answer(200, content, etag)
                return
            start, stop = (int(word) for word in said.removeprefix("bytes=").split("-"))
            part = content[start : stop + 1]
            self.answer(206, part, {**etag, "Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}"})

        def answer(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            served.sent[self.path] = served.sent.get(self.path, 0) + len(content)
            self.send_response(code)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class Quiet(ThreadingHTTPServer):
    """Says nothing of clients that leave early."""

    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, this_machine: None) -> Iterator[Served]:
    found = Served(tmp_path / "served")
    found.root.mkdir()
    server = Quiet(("127.0.0.1", 0), handler(found))
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


def cog(path: Path, seed: int = 0) -> Path:
    """1,024 x 1,024 pixels of noise, 3 MB."""
    pixels = np.random.default_rng(seed).integers(1, 255, (3, 1024, 1024), dtype=np.uint8)
    return write(path, pixels, tiled=True, blockxsize=256, blockysize=256, photometric="RGB", **PLACED)


def item(served: Served, name: str, day: str, asset: str, collection: str = "s2") -> dict[str, Any]:
    return {
        "type": "Feature", "stac_version": "1.0.0", "stac_extensions": [], "id": name, "collection": collection,
        "geometry": None, "bbox": [12.0, 55.8, 12.2, 56.0], "links": [],
        "properties": {"datetime": f"{day}T10:00:00Z"},
        "assets": {
            "visual": {"href": asset, "type": "image/tiff; application=geotiff"},
            "thumbnail": {"href": f"{served.url}/small.png", "type": "image/png", "roles": ["thumbnail"]},
        },
    }  # fmt: skip


def landing(served: Served, *items: dict[str, Any]) -> str:
    served.pages["/"] = {
        "type": "Catalog", "stac_version": "1.0.0", "id": "api", "description": "d",
        "conformsTo": ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"],
        "links": [{"rel": "search", "href": f"{served.url}/search"}, {"rel": "root", "href": f"{served.url}/"}],
    }  # fmt: skip
    served.pages["items"] = list(items)
    return f"{served.url}/"


def fetch(served: Served, folder: Path, *urls: str, **query: Any) -> Fetched:
    return fetch_images(urls, ItemQuery(**query), folder, Silent())


def make_image(path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(path)
    return path


def images(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_of_a_cog_only_the_blocks_inside_the_box_are_read(served: Served, tmp_path: Path) -> None:
    whole = cog(served.root / "scene.tif")
    found = fetch(served, tmp_path / "out", f"{served.url}/scene.tif", bbox=BOX)
    assert (found.fetched, found.left_out) == (1, ())
    # The header, and two blocks of 256 x 256 x 3 bytes that the box touches, each in whole pieces of 64 KiB.
    assert served.sent["/scene.tif"] <= 65_536 + 2 * (256 * 256 * 3 + 2 * 65_536) < whole.stat().st_size / 4
    with rasterio.open(tmp_path / "out" / images(tmp_path / "out")[0]) as part, rasterio.open(whole) as all_of_it:
        assert (part.width, part.height, part.crs) == (100, 100, all_of_it.crs)
        np.testing.assert_array_equal(part.read(), all_of_it.read()[:, 400:500, 200:300])
        np.testing.assert_allclose(part.bounds, (12.02, 55.95, 12.03, 55.96), atol=1e-9)


def test_what_has_not_changed_is_not_fetched_again_and_what_is_gone_goes(served: Served, tmp_path: Path) -> None:
    urls = [f"{served.url}/{cog(served.root / name, seed).name}" for seed, name in enumerate(("a.tif", "b.tif"))]
    fetch(served, tmp_path / "out", *urls, bbox=BOX)
    before = dict(served.sent)
    assert fetch(served, tmp_path / "out", *urls, bbox=BOX).fetched == 0
    assert served.sent["/a.tif"] - before["/a.tif"] <= 65_536  # to see that it has not changed
    cog(served.root / "a.tif", 2)
    assert fetch(served, tmp_path / "out", urls[0], bbox=BOX).fetched == 1
    assert [name[:1] for name in images(tmp_path / "out")] == ["a"]
    small = make_image(served.root / "small.png")
    outside = fetch(served, tmp_path / "out", urls[0], f"{served.url}/{small.name}", bbox=(0, 0, 1, 1))
    assert (outside.fetched, outside.outside) == (1, 1)
    assert [name[:5] for name in images(tmp_path / "out")] == ["small"]
    assert fetch(served, tmp_path / "out", urls[0]).fetched == 1
    (copied,) = (tmp_path / "out" / name for name in images(tmp_path / "out"))
    assert copied.read_bytes() == (served.root / "a.tif").read_bytes()


def test_the_items_of_a_stac_api_are_those_that_are_asked_for(served: Served) -> None:
    items = [item(served, name, "2024-05-01", f"{served.url}/{name}.tif") for name in ("one", "two", "three")]
    api = landing(served, *items, item(served, "four", "2024-05-01", f"{served.url}/four.tif", "l8"))
    query = ItemQuery(BOX, "2024", "2024-05", ("s2",), most=2)
    assert [(one.name, one.day) for one in catalogue_assets(api, query)] == [
        ("one-visual", "2024-05-01"),
        ("two-visual", "2024-05-01"),
    ]
    said = parse_qs(urlsplit(served.asked[1]).query)
    assert said["bbox"] == ["12.02,55.95,12.03,55.96"]
    assert said["datetime"] == ["2024-01-01T00:00:00Z/2024-05-31T23:59:59Z"]
    assert said["collections"] == ["s2"]


@pytest.mark.slow
def test_the_items_of_a_stac_api_are_indexed_and_asked(
    served: Served, cmpagl: Cmpagl, tiny_run: Path, tmp_path: Path
) -> None:
    asset = f"{served.url}/{cog(served.root / 'scene.tif').name}"
    api = landing(
        served,
        item(served, "one", "2024-05-01", asset),
        item(served, "two", "2024-06-01", f"{asset}?again"),
        item(served, "three", "2024-07-01", f"{asset}?other", "l8"),
        item(served, "away", "2024-07-01", "file:///etc/passwd.tif"),
    )
    chosen = ("--collection", "s2", "--bbox", ",".join(map(str, BOX)))
    asked = ("index", api, "--run", tiny_run, "--name", "stac", *chosen)
    result = cmpagl(*asked, "--format", "json")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)[0]
    assert (made["images"], made["left_out"]) == (2, 1)
    assert "file:///etc/passwd.tif' is not an address that is read" in result.stderr
    assert "/small.png" not in served.sent
    hits = json.loads(cmpagl("retrieve", "a square", "--from", "2024-05-15", "--format", "json").stdout)
    assert [hit["image_id"][:12] for hit in hits] == ["two-visual-2"]
    assert json.loads(cmpagl(*asked, "--format", "json").stdout)[0]["encoded"] == 0


def test_a_static_catalogue_is_walked(served: Served) -> None:
    served.pages["/c/catalog.json"] = {
        "type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "d",
        "links": [{"rel": "item", "href": f"./{name}.json"} for name in ("a", "b")],
    }  # fmt: skip
    for name, day in (("a", "2024-05-01"), ("b", "2024-06-01")):
        served.pages[f"/c/{name}.json"] = item(served, name, day, f"./{name}.tif")
    url = f"{served.url}/c/catalog.json"
    assert [one.url for one in catalogue_assets(url, ItemQuery())] == [
        f"{served.url}/c/a.tif",
        f"{served.url}/c/b.tif",
    ]
    assert [one.name for one in catalogue_assets(url, ItemQuery(until="2024-05"))] == ["a-visual"]
    assert catalogue_assets(url, ItemQuery(bbox=(0, 0, 1, 1))) == []
    assert [one.name for one in catalogue_assets(url, ItemQuery(assets=("thumbnail",), most=1))] == ["a-thumbnail"]


def test_a_catalogue_does_not_choose_whom_we_ask(served: Served) -> None:
    api = landing(served, *(item(served, name, "2024-05-01", f"{served.url}/a.tif") for name in ("one", "two")))
    served.elsewhere = "http://127.0.0.2:1"
    with pytest.raises(DataError, match=r"leads to http://127\.0\.0\.2:1/.*at=1, and other hosts are not asked"):
        catalogue_assets(api, ItemQuery())
    served.moved["/gone"] = "http://127.0.0.2:1/"
    with pytest.raises(DataError, match="302"):
        catalogue_assets(f"{served.url}/gone", ItemQuery())
    served.pages["/other"] = {"type": "nothing"}
    with pytest.raises(DataError, match="cannot be read as STAC"):
        catalogue_assets(f"{served.url}/other", ItemQuery())


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.tif", "http:///a.tif", "s3::http://host/a.tif"])
def test_other_addresses_are_not_read(url: str) -> None:
    with pytest.raises(DataError, match="is not an address that is read"):
        check_url(url)


def test_what_a_server_refuses_is_said(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served.moved["/moved.tif"] = "http://127.0.0.2:1/a.tif"
    (served.root / "text.tif").write_bytes(b"no image")
    cog(served.root / "large.tif")
    monkeypatch.setattr(remote_copy, "MOST_BYTES", 10_000)
    small = make_image(served.root / "small.png")
    why = {
        "moved": "302 Found); it has moved to http://127.0.0.2:1/a.tif, which is not followed",
        "none": "404",
        "text": "cannot be read as a GeoTIFF",
        "large": "larger than is copied",
    }
    urls = [f"{served.url}/{name}.tif" for name in why]
    found = fetch(served, tmp_path / "out", f"{served.url}/{small.name}", *urls, bbox=BOX)
    assert [says in one.why for says, one in zip(why.values(), found.left_out, strict=True)] == [True] * 4
    assert len(images(tmp_path / "out")) == found.fetched == 1
    whole = fetch(served, tmp_path / "out", f"{served.url}/{small.name}", f"{served.url}/large.tif")
    assert "has more than 10,000 bytes" in whole.left_out[0].why


def test_where_no_image_comes_it_is_said_why_and_nothing_is_left(served: Served, tmp_path: Path) -> None:
    missing = [f"{served.url}/none.tif", f"{served.url}/neither.tif"]
    with pytest.raises(DataError, match=r"none\.tif .*404.*, and 1 others neither"):
        fetch(served, tmp_path / "out", *missing)
    cog(served.root / "scene.tif")
    with pytest.raises(DataError, match="1 images have nothing inside the box"):
        fetch(served, tmp_path / "out", f"{served.url}/scene.tif", bbox=(13.0, 55.0, 13.1, 55.1))
    assert not (tmp_path / "out").exists()


def test_a_file_that_changes_while_it_is_read_is_refused(served: Served) -> None:
    path = served.root / "a.bin"
    path.write_bytes(bytes(200_000))
    with HttpFile(f"{served.url}/a.bin") as stream:
        assert stream.read(10) == bytes(10)
        path.write_bytes(bytes(200_001))
        stream.seek(150_000)
        with pytest.raises(DataError, match="changed while it was being read"):
            stream.read(10)


def test_a_read_across_blocks_is_the_file(served: Served) -> None:
    content = np.random.default_rng(0).bytes(300_000)
    (served.root / "a.bin").write_bytes(content)
    with HttpFile(f"{served.url}/a.bin") as stream:
        for start, count in ((0, 10), (65_530, 20), (10, 299_990), (299_999, 5), (300_000, 1), (140_000, 0)):
            stream.seek(start)
            assert stream.read(count) == content[start : start + count]
        assert stream.fetched == len(content)
        assert stream.seek(-3, 2) == 299_997
        assert stream.read() == content[-3:]


def test_nobody_listens(this_machine: None) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{one.getsockname()[1]}/a.tif"
    with pytest.raises(DataError, match="cannot be read"):
        HttpFile(url)


@pytest.mark.slow
def test_images_of_an_object_store_are_indexed(tiny_run: Path, tiny_images: Path, tmp_path: Path) -> None:
    cog(tmp_path / "scene.tif")
    shutil.copyfile(next(tiny_images.rglob("*.jpg")), tmp_path / "field.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    command = [sys.executable, str(Path(__file__).parent / "s3_images.py"), str(tmp_path), str(tiny_run)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path), "NO_COLOR": "1"}
    done = subprocess.run(
        [*command, ",".join(map(str, BOX))], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["first"]["images"], found["first"]["encoded"], found["first"]["left_out"]) == (2, 2, 0)
    assert found["again"]["encoded"] == 0
    with rasterio.open(next((tmp_path / "workspace" / "remote" / "part").glob("*.tif"))) as part:
        assert (part.width, part.height) == (100, 100)
    assert found["missing"]["code"] == 3
    assert "s3://nothing/ cannot be read" in found["missing"]["error"]
