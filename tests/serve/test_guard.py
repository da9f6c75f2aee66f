"""What the server refuses: foreign names and origins, missing tokens, large bodies, files that are not the index's."""

from __future__ import annotations

import io
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from cmpagl_core.errors import CmpaglError, UsageError
from cmpagl_core.processes import Process, own_process
from cmpagl_core.progress import Silent
from cmpagl_core.search.gallery_source import folder_source
from cmpagl_core.search.indexing import build_index
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.serve import guard as module
from cmpagl_core.serve.assets import assets_address
from cmpagl_core.serve.guard import Access
from cmpagl_core.serve.server import listen
from tests.serve.conftest import HOME, PORT, OpenClient

SEARCH = "/api/search?q=a&k=1"
OUTSIDE = Access("0.0.0.0", PORT, "right-token")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (f"127.0.0.1:{PORT}", 200),
        (f"localhost:{PORT}", 200),
        (f"LOCALHOST:{PORT}", 200),
        (f"[::1]:{PORT}", 200),
        ("127.0.0.1", 421),
        (f"127.0.0.1:{PORT + 1}", 421),
        (f"evil.example:{PORT}", 421),
        (f"127.0.0.1.evil.example:{PORT}", 421),
        (f"127.0.0.1:{PORT}@evil.example:{PORT}", 421),
        (f"evil.example/@localhost:{PORT}", 421),
        (f"192.168.1.1:{PORT}", 421),
        (f"[::1:{PORT}", 421),
        ("", 421),
    ],
)
def test_a_name_that_was_pointed_here_is_not_ours(client: TestClient, host: str, status: int) -> None:
    answer = client.get(SEARCH, headers={"Host": host})
    assert answer.status_code == status
    assert "image_id" not in answer.text or status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", f"https://127.0.0.1:{PORT}", "http://127.0.0.1"])
def test_a_request_from_another_origin_is_refused(client: TestClient, origin: str) -> None:
    assert client.get(SEARCH, headers={"Origin": origin}).status_code == 403
    assert client.post(SEARCH, headers={"Origin": origin}, files={"image": b"x"}).status_code == 403
    assert client.get(SEARCH, headers={"Origin": HOME}).status_code == 200


def test_beyond_this_machine_a_token_is_needed(open_client: OpenClient) -> None:
    client = open_client(access=OUTSIDE, follow_redirects=False)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"cmpagl_{PORT}=wrong"}):
        for path in ("/", SEARCH, f"{assets_address()}/app.js", "/api/openapi.json"):
            refused = client.get(path, headers=headers)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert client.get(f"{SEARCH}&token=right-token").status_code == 401  # addresses end up in histories and logs
    assert client.get(SEARCH, headers={"Authorization": "Bearer right-token"}).status_code == 200


def test_the_printed_address_logs_a_browser_in(open_client: OpenClient) -> None:
    client = open_client(access=OUTSIDE, follow_redirects=False)
    assert client.get("/?token=wrong").status_code == 401
    answer = client.get("/?q=a+b&token=right-token")
    assert (answer.status_code, answer.headers["location"]) == (303, "/?q=a+b")
    assert re.search(r"HttpOnly; Path=/; SameSite=strict", answer.headers["set-cookie"])
    assert client.get(SEARCH).status_code == 200


def test_beyond_this_machine_addresses_are_names_of_ours_too(open_client: OpenClient) -> None:
    client = open_client(access=OUTSIDE)
    headers = {"Authorization": "Bearer right-token"}
    assert client.get(SEARCH, headers={**headers, "Host": f"192.168.1.20:{PORT}"}).status_code == 200
    assert client.get(SEARCH, headers={**headers, "Host": f"evil.example:{PORT}"}).status_code == 421


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_it_is_read_only(client: TestClient, method: str) -> None:
    answer = client.request(method, "/api/search?q=a")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


def test_no_answer_can_run_or_load_anything_from_elsewhere(client: TestClient) -> None:
    for path in (SEARCH, "/nowhere", "/api/thumbnails/scene_05"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;")
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_a_tile_server_is_the_only_other_address() -> None:
    access = Access(tiles="https://tiles.example/{z}/{x}/{y}.png?k=1")
    assert "img-src 'self' data: blob: https://tiles.example;" in access.content_security_policy


@pytest.mark.parametrize("path", ["/../app.py", "/%2e%2e/app.py", "//etc/passwd", "/nothing.js", "/"])
def test_static_files_are_those_of_the_page_alone(client: TestClient, path: str) -> None:
    assert client.get(f"{assets_address()}/app.js").status_code == 200
    assert client.get(assets_address() + path).status_code == 404


def test_a_large_body_is_cut_off(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 10_000)
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": "10001"}
    assert client.post(SEARCH, headers=headers, content=b"x").status_code == 413
    taken: list[int] = []

    def endless() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for number in range(100):
            taken.append(number)
            yield b"x" * 1000

    answer = client.post(SEARCH, headers={"Content-Type": "multipart/form-data; boundary=b"}, content=endless())
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.vrt", b"<VRTDataset></VRTDataset>", "a.vrt is no image that can be sent"),
        ("a.jpg", b"not an image at all", "a.jpg is no image that can be sent"),
        ("a.png", b"\x89PNG\r\n\x1a\n broken", "a.png is"),
        ("a.jpg", b"", "the file of image is empty"),
    ],
)
def test_what_is_no_image_is_refused(client: TestClient, name: str, content: bytes, words: str) -> None:
    answer = client.post("/api/search", files={"image": (name, content)})
    assert answer.status_code in (400, 422)
    assert answer.json()["detail"].startswith(words)


def test_a_bomb_is_not_decoded(client: TestClient) -> None:
    stream = io.BytesIO()
    Image.new("L", (321, 321)).save(stream, "GIF")
    bomb = stream.getvalue().replace(struct.pack("<HH", 321, 321), struct.pack("<HH", 30_000, 30_000))
    answer = client.post("/api/search", files={"image": ("bomb.gif", bomb)})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("bomb.gif is")
    assert "uploaded" not in answer.text


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"files": {"other": b"x"}}, "there is no field 'other'"),
        ({"data": {"image": "x"}, "files": {"inside": b"x"}}, "the form cannot be read"),
        ({"files": [("image", b"\xff\xd8\xff"), ("image", b"\xff\xd8\xff")]}, "there is no field 'image'"),
        ({"files": [("image", b"\xff\xd8\xff")] * 3}, "the form cannot be read"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, "the form cannot be read"),
        ({"content": b"x", "headers": {"Content-Type": "image/jpeg"}}, "the body is not multipart/form-data"),
    ],
)
def test_other_forms_are_refused(client: TestClient, form: dict[str, Any], words: str) -> None:
    answer = client.post("/api/search", **form)
    assert answer.status_code in (400, 415)
    assert answer.json()["detail"].startswith(words)


def test_no_upload_is_left_behind(
    client: TestClient, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    content = (tiny_images / "north" / "scene_05.jpg").read_bytes()
    assert client.post("/api/search", files={"image": content}).status_code == 200
    assert client.post("/api/search", files={"image": content[:500]}).status_code == 422
    assert list(folder.iterdir()) == []


def test_what_a_killed_server_left_is_removed_by_the_next_upload(
    client: TestClient, tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Process(own_process().host, 2**22 + 1, 1)  # no pid is that high
    (tmp_path / f".cmpagl-serve.{dead.tag}.x.partial").mkdir()
    (tmp_path / f".cmpagl-serve.{dead.tag}.x.partial" / "uploaded-image.jpg").touch()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    content = (tiny_images / "north" / "scene_05.jpg").read_bytes()
    assert client.post("/api/search", files={"image": content}).status_code == 200
    assert not list(tmp_path.glob(".cmpagl-serve*"))


def test_a_full_disk_is_named_to_who_uploads(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for place in ("shutil.copyfileobj", "tempfile.mkdtemp"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            answer = client.post("/api/search", files={"image": b"\xff\xd8\xff"})
        assert answer.status_code == 507
        assert answer.json()["detail"].startswith("the files cannot be kept (No space left on device)")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (20, 20), (80 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def of_folder(open_client: OpenClient, fake_encoder: Any, folder: Path, tmp_path: Path) -> TestClient:
    encoder = fake_encoder()
    index = build_index(encoder, folder_source(folder), tmp_path / "index", Silent()).index
    return open_client(Searcher(index, lambda: encoder, Silent()))


def test_a_link_in_place_of_an_image_shows_nothing(of_folder: TestClient, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (20, 20), (1, 2, 3)).save(secret)
    (folder / "1.png").unlink()
    (folder / "1.png").symlink_to(secret)
    answer = of_folder.get("/api/thumbnails/1.png")
    assert answer.status_code == 404
    assert "1.png is not the file that was indexed" in answer.json()["detail"]


def test_an_image_that_was_only_touched_is_shown(of_folder: TestClient, folder: Path) -> None:
    os.utime(folder / "1.png", (1, 1))
    assert of_folder.get("/api/thumbnails/1.png").status_code == 200


def test_a_missing_image_says_so(of_folder: TestClient, folder: Path) -> None:
    (folder / "2.png").unlink()
    answer = of_folder.get("/api/thumbnails/2.png")
    assert answer.status_code == 404
    assert "2.png does not exist; update the index with `cmpagl index`" in answer.json()["detail"]


def test_paths_are_not_read_from_requests(of_folder: TestClient, folder: Path) -> None:
    for item in (str(folder / "0.png"), "../images/0.png", "/etc/passwd", "0.png/../1.png"):
        assert of_folder.get(f"/api/thumbnails/{item.replace('/', '%2F')}").status_code == 404


def test_a_text_that_names_a_file_is_a_text(of_folder: TestClient, folder: Path) -> None:
    asked = {"q": "a", "plus": str(folder / "0.png")}
    named = of_folder.get("/api/search", params=asked).json()["hits"]
    (folder / "0.png").unlink()
    assert of_folder.get("/api/search", params=asked).json()["hits"] == named


def test_a_port_that_is_taken_is_named() -> None:
    first = listen("127.0.0.1", 0)
    first.socket.listen()
    with pytest.raises(CmpaglError, match=rf"127.0.0.1:{first.access.port} cannot be used \(Address already in use\)"):
        listen("127.0.0.1", first.access.port)
    first.socket.close()


def test_only_an_outside_address_has_a_token() -> None:
    for host in ("127.0.0.1", "0.0.0.0"):
        bound = listen(host, 0)
        bound.socket.close()
        assert bool(bound.access.token) == (host == "0.0.0.0") == ("?token=" in bound.url)
    with pytest.raises(UsageError, match="--tiles 'javascript:x' is no tile server"):
        listen("127.0.0.1", 0, "javascript:x")
