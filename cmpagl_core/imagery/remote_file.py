"""Files behind an address, read in ranges: over HTTP by ourselves, in object stores by fsspec (extra `shards`).

An address is one that a user named, or one that a catalogue gave, so nothing is trusted: http, https and the schemes of
object stores alone, no redirects, sizes and times bounded. What changes while it is read is refused.
"""

from __future__ import annotations

import http.client
import io
import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import quote, urlsplit

from cmpagl_core.errors import DataError, UsageError

STORES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "oss", "r2")
SCHEMES = ("http", "https", *STORES)
VERSION_KEYS = ("size", "mtime", "ETag", "LastModified", "etag", "last_modified", "updated")
INSTALL = "pip install 'cmpagl[shards]'"

_BLOCK = 1 << 16  # read at once, at least
_BLOCKS_KEPT = 512
_TIMEOUT_S = 60.0
_ERRORS = (OSError, http.client.HTTPException)


def is_url(text: str) -> bool:
    """Whether a user's word is an address and no path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def check_url(url: str) -> str:
    """The address itself. Raises DataError for a scheme that is not read, or one without a host."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc or "::" in url or any(sign < " " for sign in url):
        raise DataError(f"{url[:200]!r} is not an address that is read", hint=f"known are {', '.join(SCHEMES)}")
    return url


@contextmanager
def opened_url(url: str) -> Iterator[tuple[IO[bytes], int, str]]:
    """A file behind an address, its size in bytes, and a text that differs when it has changed. Raises DataError."""
    if urlsplit(check_url(url)).scheme in ("http", "https"):
        with HttpFile(url) as stream:
            yield stream, stream.size, stream.version  # type: ignore[misc]  # a RawIOBase of bytes
        return
    with reading(url):
        store = filesystem(url)
        info = store.info(url)
        version = " ".join(f"{key}={info[key]}" for key in VERSION_KEYS if info.get(key) is not None)
        opened = store.open(url, "rb", block_size=_BLOCK, cache_type="bytes")
    with opened:
        yield opened, int(info.get("size") or 0), version


@contextmanager
def streamed_url(url: str) -> Iterator[tuple[IO[bytes], int, str]]:
    """As `opened_url`, to be read once from its beginning; a size of -1 where the server says none."""
    if urlsplit(check_url(url)).scheme not in ("http", "https"):
        with opened_url(url) as opened:
            yield opened
        return
    connection = _connect(url)
    try:
        answer = _get(connection, url, {})
        if answer.status != http.client.OK:
            raise DataError(f"{url} cannot be read ({answer.status} {answer.reason})", hint=_hint(answer))
        size = -1 if answer.length is None else answer.length
        yield answer, size, _version(answer)
    except _ERRORS as error:
        raise DataError(f"{url} cannot be read ({error or type(error).__name__})") from error
    finally:
        connection.close()


class HttpFile(io.RawIOBase):
    """A file over HTTP: blocks that are needed are asked for by range, over one connection, and some are kept.

    fetched: bytes that were received. Raises DataError where the server cannot be reached or answers no ranges.
    """

    def __init__(self, url: str) -> None:
        self._url, self._at, self.fetched = url, 0, 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._connection = _connect(url)
        self.failure: DataError | None = None  # for those who read it through GDAL, which keeps none
        self.size, self.version = 0, ""
        self._blocks[0] = self._ask(0, _BLOCK)

    def _ask(self, start: int, stop: int) -> bytes:
        """Bytes of a range, fewer at the end of the file. A connection that was closed meanwhile is opened again."""
        for last in (False, True):
            try:
                return self._answer(start, stop)
            except _ERRORS as error:
                self._connection.close()
                if last:
                    raise DataError(f"{self._url} cannot be read ({error or type(error).__name__})") from error
                self._connection = _connect(self._url)
        raise AssertionError("the second try returns or raises")

    def _answer(self, start: int, stop: int) -> bytes:
        answer = _get(self._connection, self._url, {"Range": f"bytes={start}-{stop - 1}"})
        if answer.status != http.client.PARTIAL_CONTENT:
            self._connection.close()  # with whatever it would send
            raise DataError(
                f"{self._url} cannot be read in parts ({answer.status} {answer.reason})", hint=_hint(answer)
            )
        named = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", ""))
        if named is None or int(named[1]) != start or not start <= int(named[2]) < min(stop, int(named[3])):
            self._connection.close()
            raise DataError(f"{self._url} answers another range than was asked for")
        size, version = int(named[3]), _version(answer)
        if self.size and (size, version) != (self.size, self.version):
            self._connection.close()
            raise DataError(f"{self._url} changed while it was being read", hint="run the command again")
        self.size, self.version = size, version
        length = int(named[2]) + 1 - start
        content = answer.read(length)
        self.fetched += len(content)
        if len(content) != length:
            raise http.client.IncompleteRead(content)
        return content

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def read(self, count: int | None = -1) -> bytes:
        stop = self.size if count is None or count < 0 else min(self.size, self._at + count)
        if stop <= self._at:
            return b""
        first, last = self._at // _BLOCK, (stop - 1) // _BLOCK
        try:
            whole = self._whole(first, last)
        except DataError as error:
            self.failure = error
            raise
        content = whole[self._at - first * _BLOCK : stop - first * _BLOCK]
        self._at = stop
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _whole(self, first: int, last: int) -> bytes:
        """Some blocks; those that are missing are asked for in as few ranges as they lie in."""
        found: list[bytes] = []
        number = first
        while number <= last:
            if number in self._blocks:
                self._blocks.move_to_end(number)
                found.append(self._blocks[number])
                number += 1
                continue
            stop = number
            while stop <= last and stop not in self._blocks:
                stop += 1
            content = self._ask(number * _BLOCK, min(stop * _BLOCK, self.size))
            for place in range(number, stop):
                self._blocks[place] = content[(place - number) * _BLOCK : (place - number + 1) * _BLOCK]
            found.append(content)
            number = stop
        while len(self._blocks) > _BLOCKS_KEPT:
            self._blocks.popitem(last=False)
        return b"".join(found)

    def close(self) -> None:
        if not self.closed:
            self._connection.close()
        super().close()


def filesystem(url: str) -> Any:
    """fsspec's file system of a URL; its credentials come from the environment. Raises UsageError without it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise UsageError(f"reading {url} needs fsspec", hint=INSTALL) from error
    try:
        return url_to_fs(url)[0]
    except ImportError as error:
        raise UsageError(f"reading {url} needs another package ({error})", hint=INSTALL) from error
    except ValueError as error:
        raise UsageError(f"{url} cannot be read ({error})") from error


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Turns what a store raises into one DataError."""
    try:
        yield
    except (DataError, UsageError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{url} cannot be read ({said})", hint="check its name, and the credentials in the environment"
        ) from error


def _connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.netloc, timeout=_TIMEOUT_S)


def _get(connection: http.client.HTTPConnection, url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", path, headers={"User-Agent": "cmpagl", "Accept-Encoding": "identity", **headers})
    return connection.getresponse()


def _version(answer: http.client.HTTPResponse) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _hint(answer: http.client.HTTPResponse) -> str:
    moved = answer.headers.get("Location")
    if moved is not None:
        return f"it has moved to {moved[:200]}, which is not followed"
    return "the server needs to answer range requests" if answer.status == http.client.OK else "check the address"
