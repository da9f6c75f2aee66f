"""Identifies processes, so that a later one can tell whether they are still running."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

_TAG = re.compile(r"([0-9a-f]{8})-(\d+)-(\d+)")


@dataclass(frozen=True)
class Process:
    """A process on some host. started_ticks: clock ticks from boot to its start; 0 if unknown."""

    host: str
    pid: int
    started_ticks: int

    @property
    def tag(self) -> str:
        """Host, pid and start as part of a file name."""
        return f"{_host_key(self.host)}-{self.pid}-{self.started_ticks}"

    def has_ended(self) -> bool:
        """Whether it has certainly ended; False for other hosts, where this is unknown."""
        return self.host == socket.gethostname() and not _is_running(self.pid, self.started_ticks)


def own_process() -> Process:
    """The current process; not cached, since a fork has another pid."""
    state = _state(os.getpid())
    return Process(socket.gethostname(), os.getpid(), 0 if state is None else state[1])


def tag_has_ended(tag: str) -> bool:
    """Whether the process whose tag is in a file name has certainly ended."""
    found = _TAG.fullmatch(tag)
    if found is None or found[1] != _host_key(socket.gethostname()):
        return False
    return not _is_running(int(found[2]), int(found[3]))


def _host_key(host: str) -> str:
    return hashlib.sha256(host.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _is_running(pid: int, started_ticks: int) -> bool:
    """Pids are reused, hence the start time; a zombie has closed its files and counts as ended."""
    if Path("/proc/self/stat").exists():
        state = _state(pid)
        return state is not None and state[0] not in "ZX" and started_ticks in (0, state[1])
    if os.name == "nt":
        return True  # asking with os.kill would send it Ctrl-C
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _state(pid: int) -> tuple[str, int] | None:
    """State letter and start of a process from Linux's /proc; None if not available."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()  # the name before it may contain anything
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
