"""A small index behind the server's application, asked in this process; and a browser that looks at its page."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.progress import Silent
from cmpagl_core.search.gallery_source import dataset_source, folder_source
from cmpagl_core.search.indexing import build_index
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.serve import page as page_module
from cmpagl_core.serve import server
from cmpagl_core.serve.app import make_app
from cmpagl_core.serve.guard import Access
from cmpagl_core.session import Session
from cmpagl_core.workspace import Workspace
from tests.conftest import FakeEncoder
from tests.imagery.making import ground, write

PORT = 8230
HOME = f"http://127.0.0.1:{PORT}"
OpenClient = Callable[..., TestClient]

Page = Any  # playwright's
Serve = Callable[..., str]
OpenPage = Callable[..., Page]
HOW = "Chromium is not here: `apt-get install chromium`, or name another in CMPAGL_CHROMIUM"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_MS = 20_000  # a machine may be busy
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 800}


@pytest.fixture
def searcher(fake_encoder: Any, tiny_prepared: Path, tmp_path: Path) -> Searcher:
    encoder = fake_encoder()
    source = dataset_source(open_prepared(tiny_prepared))
    root = tmp_path / "workspace" / "indexes" / "tiny"
    return Searcher(build_index(encoder, source, root, Silent()).index, lambda: encoder, Silent())


@pytest.fixture
def session(tmp_path: Path) -> Session:
    def no_device() -> Any:
        raise AssertionError("no model is needed")

    return Session(Workspace(tmp_path / "workspace"), Silent(), no_device)


@pytest.fixture
def open_client(searcher: Searcher, session: Session) -> Iterator[OpenClient]:
    """A client of an application over any searcher; ours if none is given."""
    opened: list[TestClient] = []

    ours = session

    def make(
        other: Searcher | None = None, access: Access | None = None, session: Session = ours, **options: Any
    ) -> TestClient:
        app = make_app(other or searcher, session, access or Access(port=PORT))
        client = TestClient(app, base_url=HOME, **options)
        client.__enter__()
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@contextmanager
def served(searcher: Searcher, session: Session, bound: socket.socket, access: Access) -> Iterator[None]:
    """A server in a thread of this process, at a socket that is bound."""
    servers: list[server._Server] = []

    class Remembered(server._Server):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            servers.append(self)

    ready = threading.Event()
    app = make_app(searcher, session, access)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "_Server", Remembered)
        patch.setattr(server, "_SIGNALS", ())  # those are of the main thread
        thread = threading.Thread(target=server.run, args=(app, server.Listening(bound, access), ready.set))
        thread.start()
        assert ready.wait(20)
        yield
        servers[0].should_exit = True
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def client(open_client: OpenClient) -> TestClient:
    return open_client()


@pytest.fixture(scope="session")
def browser_page() -> Iterator[Page]:
    """A page of Debian's Chromium; skipped without it, unless CMPAGL_NEEDS_BROWSER makes that a failure."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install 'cmpagl[dev]'")
    path = os.environ.get("CMPAGL_CHROMIUM") or shutil.which("chromium")
    if path is None:
        (pytest.fail if os.environ.get("CMPAGL_NEEDS_BROWSER") else pytest.skip)(HOW)
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        context = browser.new_context(accept_downloads=True, reduced_motion="reduce")
        context.set_default_timeout(PATIENCE_MS)
        yield context.new_page()
        browser.close()


@pytest.fixture(scope="session")
def axe() -> str:
    return (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    """Tiles of two scenes with places and days, and pictures without."""
    from rasterio.transform import Affine

    from cmpagl_core.imagery.tiles import Tiling

    root = tmp_path_factory.mktemp("browser")
    for number, (name, lon, lat) in enumerate((("copenhagen_20240531", 12.5, 55.7), ("fiji_20230101", 177.4, -17.8))):
        place = {"crs": "EPSG:4326", "transform": Affine(0.001, 0, lon, 0, -0.001, lat)}
        planes = ground(side=240, low=0, high=255, seed=number).astype(np.uint8)
        write(root / "images" / f"{name}.tif", planes, **place, photometric="RGB")
    for number in range(6):
        planes = ground(side=60, low=0, high=255, seed=10 + number).astype(np.uint8)
        write(root / "images" / "plain" / f"{number}.png", planes, driver="PNG")
    encoder = FakeEncoder()
    source = folder_source(root / "images", tiling=Tiling(80))
    return Searcher(build_index(encoder, source, root / "index", Silent()).index, lambda: encoder, Silent())


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start a server over a searcher, in the workspace where its index is, perhaps with tiles; its address."""
    device: Any = None
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(page_module, "has_itm_head", lambda *_: True)

        def start(searcher: Searcher, tiles: str = "") -> str:
            bound = socket.socket()
            bound.bind(("127.0.0.1", 0))
            access = Access(port=bound.getsockname()[1], tiles=tiles)
            session = Session(Workspace(searcher.gallery.root.parent.parent), Silent(), device)
            stack.enter_context(served(searcher, session, bound, access))
            return f"http://127.0.0.1:{access.port}"

        yield start


@pytest.fixture(scope="session")
def home(serve: Serve, scenes: Searcher) -> str:
    return serve(scenes)


@pytest.fixture
def open_page(browser_page: Page) -> Iterator[OpenPage]:
    """Go to an address. Anything on the console, or a request to an address elsewhere, fails the test.

    allowed: what may be in one, where the test makes something fail or asks for it.
    """
    said: list[str] = []
    expected: list[str] = []
    homes: list[str] = []
    listeners = {
        "console": lambda message: said.append(message.text),
        "pageerror": lambda error: said.append(str(error)),
        "request": lambda request: said.append(request.url) if not is_own(request.url, homes) else None,
    }
    page = browser_page
    for event, listener in listeners.items():
        page.on(event, listener)

    def go(address: str, allowed: str = "", dark: bool = False, size: Any = WIDE) -> Page:
        homes.append("/".join(address.split("/")[:3]))
        expected.extend([allowed] if allowed else [])
        page.set_viewport_size(size)
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.goto(address)
        return page

    yield go
    page.unroute_all()
    page.goto("about:blank")
    for event, listener in listeners.items():
        page.remove_listener(event, listener)
    assert [text for text in said if not any(part in text for part in expected)] == []


def is_own(url: str, homes: list[str]) -> bool:
    return url.startswith(("data:", *(f"{prefix}{home}/" for home in homes for prefix in ("", "blob:"))))
