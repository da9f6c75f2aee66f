"""What every test stands on: no network, few threads, a workspace of its own, and the real data where it is."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings
from typer.testing import CliRunner, Result

REPOSITORY = Path(__file__).parent.parent

# Set before torch is imported, and passed on to the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
os.environ["COLUMNS"] = "80"
os.environ.pop("CMPAGL_WORKSPACE", None)

settings.register_profile("cmpagl", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("cmpagl")


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("a test reached for the network")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection and every name look-up fails; Unix sockets stay, since worker processes use them."""
    connect = socket.socket.connect

    def only_unix(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            _refuse()
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_unix)
    monkeypatch.setattr(socket.socket, "connect_ex", _refuse)
    monkeypatch.setattr(socket, "getaddrinfo", _refuse)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real pictures and captions beside the repository; the test is skipped without it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    return folder


Cmpagl = Callable[..., Result]


@pytest.fixture
def cmpagl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cmpagl:
    """Call the command line in this process, in an empty workspace: `cmpagl("runs", "list").exit_code`."""
    from cmpagl_cli.app import app

    monkeypatch.chdir(tmp_path)
    runner = CliRunner()

    def call(*arguments: str | Path) -> Result:
        return runner.invoke(app, [str(argument) for argument in arguments])

    return call
