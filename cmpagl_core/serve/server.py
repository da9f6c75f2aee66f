"""Listens, and ends in order: what is being answered is finished, and clients that dawdle are cut off."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from cmpagl_core.errors import CmpaglError, UsageError
from cmpagl_core.serve.guard import Access, is_loopback

_HEAD_S = 10.0  # in which a request's head must have come
_STALLED_S = 30.0  # for which a client may take nothing of an answer
_CHECK_S = 1.0
_GRACE_S = 5  # for what is being answered when the server is told to end
_CONNECTIONS = 256
_HEAD_BYTES = 64 << 10
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@dataclass(frozen=True, eq=False)
class Listening:
    """A socket that is bound, and who may ask there."""

    socket: socket.socket
    access: Access

    @property
    def url(self) -> str:
        """What to open in a browser; with the token, where there is one."""
        host = self.access.host
        if host in ("0.0.0.0", "::"):  # noqa: S104  # compared, not bound
            host = socket.gethostname()
        shown = f"[{host}]" if ":" in host else host
        token = f"?token={self.access.token}" if self.access.token else ""
        return f"http://{shown}:{self.access.port}/{token}"


def listen(host: str, port: int, tiles: str = "") -> Listening:
    """Bind. A host beyond this machine gets a token. tiles: as in `Access`.

    Raises UsageError for a host or tile address that is none, CmpaglError for a port that is taken.
    """
    if tiles and (urlsplit(tiles).scheme not in ("http", "https") or "{z}" not in tiles or set(tiles) & set(" ;,'\"")):
        raise UsageError(f"--tiles {tiles!r} is no tile server", hint="as in https://tiles.example/{z}/{x}/{y}.png")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except socket.gaierror as error:
        bound.close()
        raise UsageError(f"--host {host!r} is no address of this machine", hint="try 127.0.0.1") from error
    except OSError as error:
        bound.close()
        raise CmpaglError(f"{host}:{port} cannot be used ({error.strerror})", hint="choose another --port") from error
    token = "" if is_loopback(host) else secrets.token_urlsafe(24)
    return Listening(bound, Access(host, bound.getsockname()[1], token, tiles))


def run(app: ASGIApp, listening: Listening, ready: Callable[[], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP. ready: called when requests are answered."""
    config = uvicorn.Config(
        app,
        http=_PatientProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=_GRACE_S,
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # clients that send nonsense are no news
    server = _Server(config, ready)
    try:
        server.run(sockets=[listening.socket])
    finally:
        listening.socket.close()


class _Server(uvicorn.Server):
    """Ends at a signal without raising it again, and cuts off clients that dawdle."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        for number in _SIGNALS:
            signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()
            self._watch = asyncio.create_task(self._cut_off())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._watch.cancel()
        await super().shutdown(sockets)

    async def _cut_off(self) -> None:
        while True:
            await asyncio.sleep(_CHECK_S)
            for connection in list(self.server_state.connections):
                if isinstance(connection, _PatientProtocol):
                    connection.cut_off_if_it_dawdles()


class _PatientProtocol(H11Protocol):
    """A connection that knows since when it waits for its client."""

    _idle_since = 0.0
    _stalled_since: float | None = None
    _unsent = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._idle_since = time.monotonic()

    def on_response_complete(self) -> None:
        self._idle_since = time.monotonic()
        super().on_response_complete()

    def cut_off_if_it_dawdles(self) -> None:
        """Abort if a request's head is late, or the client takes nothing of its answer."""
        now = time.monotonic()
        answering = self.cycle is not None and not self.cycle.response_complete
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent:
            self._stalled_since = None
        elif self._stalled_since is None:
            self._stalled_since = now
        self._unsent = unsent
        is_late = not answering and not unsent and now - self._idle_since > _HEAD_S + self.timeout_keep_alive
        is_stalled = self._stalled_since is not None and now - self._stalled_since > _STALLED_S
        if is_late or is_stalled:
            with suppress(OSError):
                self.transport.abort()
