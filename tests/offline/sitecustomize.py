"""Imported by every Python that a test starts, before anything else: connections leave this machine in none of them."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any, NoReturn

_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo


def _refuse() -> NoReturn:
    raise RuntimeError("a process of the tests reached for the network")


def _is_here(host: Any) -> bool:
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback or _is_own(host)
    except ValueError:
        return False


def _is_own(address: str) -> bool:
    """Whether it is one of this machine's addresses, by which the processes of a cluster know each other."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as one:
            one.bind((address, 0))
    except OSError:
        return False
    return True


def _check(self: socket.socket, address: Any) -> None:
    if self.family != socket.AF_UNIX and not _is_here(address[0]):
        _refuse()


def _checked_connect(self: socket.socket, address: Any) -> None:
    _check(self, address)
    _connect(self, address)


def _checked_connect_ex(self: socket.socket, address: Any) -> int:
    _check(self, address)
    return _connect_ex(self, address)


def _checked_getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
    if not _is_here(host):
        _refuse()
    return _getaddrinfo(host, *arguments, **options)


socket.socket.connect = _checked_connect  # type: ignore[method-assign]
socket.socket.connect_ex = _checked_connect_ex  # type: ignore[method-assign]
socket.getaddrinfo = _checked_getaddrinfo
