"""No test, and no process that a test starts, reaches the network."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

NOWHERE = ("192.0.2.1", 80)  # set aside for documentation

REACH = """
import socket, sys
try:
    {call}
except RuntimeError as error:
    sys.exit(str(error))
"""


def test_this_process_is_offline() -> None:
    with socket.socket() as one, pytest.raises(RuntimeError, match="a test reached for the network"):
        one.connect(NOWHERE)
    with pytest.raises(RuntimeError, match="a test reached for the network"):
        socket.getaddrinfo("example.org", 80)


@pytest.mark.parametrize(
    "call",
    [
        "socket.socket().connect(('192.0.2.1', 80))",
        "socket.socket().connect_ex(('192.0.2.1', 80))",
        "socket.getaddrinfo('example.org', 80)",
        "__import__('urllib.request').request.urlopen('http://example.org')",
    ],
)
def test_a_process_that_a_test_starts_is_offline(call: str) -> None:
    done = subprocess.run([sys.executable, "-c", REACH.format(call=call)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "a process of the tests reached for the network\n"


def test_a_process_may_still_talk_to_this_machine() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        call = f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 10).close()"
        subprocess.run([sys.executable, "-c", REACH.format(call=call)], check=True)
