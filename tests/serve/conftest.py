"""A small index behind the server's application, asked in this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.progress import Silent
from cmpagl_core.search.gallery_source import dataset_source
from cmpagl_core.search.indexing import build_index
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.serve import server
from cmpagl_core.serve.app import make_app
from cmpagl_core.serve.guard import Access
from cmpagl_core.session import Session
from cmpagl_core.workspace import Workspace

PORT = 8230
HOME = f"http://127.0.0.1:{PORT}"
OpenClient = Callable[..., TestClient]


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
