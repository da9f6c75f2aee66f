"""A server that listens: it ends in order, and does not wait for clients that dawdle."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmpagl_core.search.searcher import Searcher
from cmpagl_core.serve import guard as guard_module
from cmpagl_core.serve import server as module
from cmpagl_core.serve.guard import Access
from cmpagl_core.session import Session
from tests.conftest import REPOSITORY
from tests.serve.conftest import served


@pytest.fixture
def place(searcher: Searcher, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server in a thread of this process, at a Unix socket."""
    path = tmp_path / "socket"
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(path))
    monkeypatch.setattr(module, "_HEAD_S", -14.7)  # beside the time that connections are kept for
    monkeypatch.setattr(module, "_CHECK_S", 0.05)
    monkeypatch.setattr(module, "_STALLED_S", 0.3)
    monkeypatch.setattr(guard_module, "BODY_S", 0.3)
    with served(searcher, session, bound, Access()):
        yield path


def connected(place: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(place))
    return client


def ends(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    content = b""
    try:
        while part := client.recv(65536):
            content += part
    except ConnectionResetError:
        pass
    return content


def test_a_request_is_answered(place: Path) -> None:
    with connected(place) as client:
        client.sendall(b"GET /api/search?q=a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert ends(client).startswith(b"HTTP/1.1 200 OK")


def test_a_head_that_does_not_end_is_cut_off(place: Path) -> None:
    with connected(place) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: local")
        assert ends(client) == b""


def test_a_body_that_does_not_come_is_cut_off(place: Path) -> None:
    head = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with connected(place) as client:
        client.sendall(head + b"Content-Length: 1000\r\n\r\n--b")
        assert b"408" in ends(client)


def test_a_client_that_reads_nothing_is_cut_off(place: Path) -> None:
    with connected(place) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = b"GET /api/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for _ in range(200):
            try:
                client.sendall(request)
            except OSError:
                break
        hung_up = select.poll()
        hung_up.register(client, 0)
        assert hung_up.poll(20_000)
        assert len(ends(client)) < 200 * 8000


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_a_signal_ends_it_in_order(tiny_run: Path, tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "cmpagl_cli", "--workspace", str(tiny_run.parent.parent), "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--index", str(index_of(tiny_run, tmp_path))],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 0, told
    assert told.rstrip().endswith("stopped")


def index_of(run: Path, folder: Path) -> Path:
    from cmpagl_core.datasets.prepared import open_prepared
    from cmpagl_core.encoders.cmpagl import CmpaglEncoder
    from cmpagl_core.progress import Silent
    from cmpagl_core.runs import open_run
    from cmpagl_core.search.gallery_source import dataset_source
    from cmpagl_core.search.indexing import build_index

    source = dataset_source(open_prepared(run.parent.parent / "data" / "tiny"))
    build_index(CmpaglEncoder(open_run(run), Silent()), source, folder / "index", Silent())
    return folder / "index"
