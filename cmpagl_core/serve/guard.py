"""What every request must pass before anything is answered, and the headers that every answer has.

`Host` and `Origin` are checked, since a page elsewhere may point a name of its own at this address (DNS rebinding);
beyond this machine a token is needed too. Bodies are bounded in size and time.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
import time
from collections.abc import MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cmpagl_core.serve.problems import RequestError, problem
from cmpagl_core.serve.uploads import MAX_UPLOAD_BYTES

BODY_S = 30.0  # in which a body must have come
MAX_BODY_BYTES = 2 * MAX_UPLOAD_BYTES + (1 << 20)
_METHODS = ("GET", "HEAD", "POST")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Access:
    """Who may ask. host, port: where the server listens; token: what must be shown, where it is not empty.

    tiles: the address of a tile server that the page may load map images from, "" for none.
    """

    host: str = "127.0.0.1"
    port: int = 0
    token: str = ""
    tiles: str = ""

    @property
    def cookie(self) -> str:
        """The name of the cookie that carries the token; cookies do not know ports."""
        return f"cmpagl_{self.port}"

    def knows(self, host: str) -> bool:
        """Whether a Host header is one of ours. A foreign page can name neither an address nor our machine's name."""
        try:
            parts = urlsplit(f"//{host}")
            name, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            return False
        if "@" in host or "/" in host or (self.port and (port or 80) != self.port):
            return False
        if is_loopback(self.host):
            return name in _LOOPBACK or name == self.host
        if name in (*_LOOPBACK, self.host.lower(), socket.gethostname().lower()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def admits(self, given: str) -> bool:
        """Whether a token is the right one, in the same time for every wrong one."""
        return hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode())

    @property
    def content_security_policy(self) -> str:
        """Everything from here; no inline script or style; map images also from the tile server."""
        tiles = urlsplit(self.tiles)
        images = f" {tiles.scheme}://{tiles.netloc}" if self.tiles else ""
        return (
            f"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:{images}; "
            "connect-src 'self'; manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"a connection of type {scope['type']}")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(message, self._access)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        await self._app(scope, _Bounded(receive, MAX_BODY_BYTES, BODY_S), send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that is not let through."""
        headers, access = Headers(scope=scope), self._access
        if scope["method"] not in _METHODS:
            error = RequestError(405, f"method {scope['method'][:20]} is not answered", hint="this is read-only")
            return problem(error, {"Allow": ", ".join(_METHODS)})
        if len(headers.getlist("host")) != 1 or not access.knows(headers["host"]):
            return problem(
                RequestError(
                    421,
                    f"this server is not {headers.get('host', '')[:100]!r}",
                    hint="open the address that it printed",
                )
            )
        origin = headers.get("origin")
        if origin is not None and origin != f"{scope.get('scheme', 'http')}://{headers['host']}":
            return problem(
                RequestError(403, f"the request comes from {origin[:100]!r}", hint="open this server's own page")
            )
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            error = RequestError(413, f"the body has {length[:20]} bytes", hint=f"{MAX_BODY_BYTES >> 20} MiB are taken")
            return problem(error, {"Connection": "close"})
        return None if not access.token else self._without_token(scope, headers)

    def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        access, secret = self._access, headers.get("authorization", "")
        if secret.lower().startswith("bearer ") and access.admits(secret[7:].strip()):
            return None
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(access.cookie)
        except CookieError:
            morsel = None
        if morsel is not None and access.admits(morsel.value):
            return None
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        shown = [value for name, value in asked if name == "token"]
        if scope["method"] == "GET" and scope["path"] == "/" and len(shown) == 1 and access.admits(shown[0]):
            rest = urlencode([pair for pair in asked if pair[0] != "token"])
            response = RedirectResponse(f"/?{rest}" if rest else "/", 303)
            response.set_cookie(access.cookie, access.token, httponly=True, samesite="strict")
            return response
        error = RequestError(
            401,
            "the token is missing or wrong",
            hint="open the address that `cmpagl serve` printed, or send it as Bearer",
        )
        return problem(error, {"WWW-Authenticate": "Bearer"})


class _Bounded:
    """A `receive` that ends a body which is too large or too slow. Raises RequestError."""

    def __init__(self, receive: Receive, most_bytes: int, within_s: float) -> None:
        self._receive, self._left = receive, most_bytes
        self._until, self._is_read = time.monotonic() + within_s, False

    async def __call__(self) -> MutableMapping[str, Any]:
        if self._is_read:  # what follows is only whether the client is still there
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
        except TimeoutError:
            raise RequestError(408, "the body did not come in time", hint="send it again") from None
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self._is_read = not message.get("more_body", False)
            if self._left < 0:
                raise RequestError(413, "the body is too large", hint=f"{MAX_BODY_BYTES >> 20} MiB are taken")
        return message


def _add_headers(message: Message, access: Access) -> None:
    headers = [(name.lower(), value) for name, value in message.get("headers", [])]
    given = {name for name, _ in headers}
    ours = {
        "content-security-policy": access.content_security_policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "permissions-policy": "camera=(), microphone=(), geolocation=()",
        "cache-control": "no-store",
    }
    more = [(name.encode(), value.encode()) for name, value in ours.items() if name.encode() not in given]
    message["headers"] = [*headers, *more]
