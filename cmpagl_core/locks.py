"""One writer at a time: a process locks what it writes in steps, and others learn which process that is.

A lock is a file beside its target, which the kernel unlocks when its owner dies, and a record of the owner next to it.
The record is used in messages, and binds hosts that share a disk but not its locks. Readers need no lock, since all
files that they open are replaced atomically (`files.py`).
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from cmpagl_core.errors import BusyError, CmpaglError
from cmpagl_core.files import sweep_partials
from cmpagl_core.processes import Process, own_process

_POLL_S = 0.1
_SETTLE_S = 0.5  # time allowed between an owner's lock and its record
_SETTLE_POLL_S = 0.02
_LONGEST_COMMAND = 200


@dataclass(frozen=True)
class Owner:
    """The holder of a lock, its command, and the time at which it took the lock."""

    process: Process
    command: str
    since: str


_UNKNOWN = Owner(Process("", 0, 0), "", "")


@contextmanager
def hold(target: Path, wait: Callable[[str], None] | None = None, instead: str = "") -> Iterator[None]:
    """Be the only process that writes `target` (a file or folder, existing or not) during the block.

    A dead owner's lock is taken over if it was on this host, and its partial files are removed.
    wait: called once with the owner's name, and the block starts when that owner is done; None refuses immediately.
    instead: an alternative for the user, appended to the refusal after "or".
    Raises BusyError naming the owner, CmpaglError if the disk refuses. Not reentrant.
    """
    if target.exists() and not target.is_file() and not target.is_dir():
        yield  # a pipe or terminal may have any number of writers
        return
    lock = _Lock(target)
    told: Owner | None = None
    while (owner := lock.take()) is not None:
        if wait is None:
            raise BusyError(lock.describe(owner), hint=lock.remedy(owner, instead))
        if owner != told:
            wait(f"waiting: {lock.describe(owner)}; {lock.remedy(owner, 'stop this one with Ctrl-C')}")
            told = owner
        time.sleep(_POLL_S)
    try:
        sweep_partials(target.resolve())
        yield
    finally:
        lock.release()


def sweep_lock(target: Path) -> None:
    """Remove what a dead process left of its lock on something that was finished, so that nobody locks it again."""
    lock = _Lock(target)
    if lock.exists():
        with suppress(CmpaglError), hold(target):  # a living owner keeps it
            pass


class _Lock:
    """The two files of a lock: `.NAME.lock`, which the kernel locks, and `.NAME.lock.json`, which names the owner."""

    def __init__(self, target: Path) -> None:
        self._target, self._own = target, own_process()
        real = target.resolve()  # one lock per folder, even if two workspaces reach it through links
        self._folder = real.parent
        self._path = self._folder / f".{real.name}.lock"
        self._record = self._folder / f".{real.name}.lock.json"
        self._lock = FileLock(self._path)
        self._made: list[Path] = []  # folders that did not exist, innermost first

    def exists(self) -> bool:
        """Whether anybody has it, or had it and died."""
        return self._path.exists() or self._record.exists()

    def take(self) -> Owner | None:
        """Take the lock, or return its owner."""
        deadline = time.monotonic() + _SETTLE_S
        try:
            self._make_folder()
            while not self._acquired():
                owner = self._read()
                if (owner is not None and not owner.process.has_ended()) or time.monotonic() > deadline:
                    return owner or _UNKNOWN
                time.sleep(_SETTLE_POLL_S)
            return self._recorded()
        except OSError as error:
            if self._lock.is_locked:
                self.release()  # with what a full disk left of the record
            raise CmpaglError(
                f"cannot lock {self._target} ({error.strerror or error})", hint="choose a writable place"
            ) from error

    def release(self) -> None:
        """Release the lock; a forked child leaves that to its parent."""
        if os.getpid() != self._own.pid:
            return
        for path in (self._record, self._path):
            with suppress(OSError):
                path.unlink()
        self._lock.release()
        with suppress(OSError):  # folders that are not empty stay
            for folder in self._made:
                folder.rmdir()

    def describe(self, owner: Owner) -> str:
        """A sentence that names the owner."""
        if not owner.process.host:
            return f"{self._target} is being written by another process"
        who = f"process {owner.process.pid} on {owner.process.host}"
        return f"{self._target} is being written by {who} ({owner.command}, since {owner.since})"

    def remedy(self, owner: Owner, instead: str) -> str:
        """What the user can do about it."""
        other = f", or {instead}" if instead else ""
        if owner.process.host in ("", self._own.host):
            return f"wait until it has ended{other}"
        return f"wait until it has ended{other}; if it no longer runs there, remove {self._record}"

    def _make_folder(self) -> None:
        self._made += [made for made in (self._folder, *self._folder.parents) if not made.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)

    def _acquired(self) -> bool:
        try:
            with warnings.catch_warnings():
                # on a disk without locks filelock writes its own marker, and our record exists too
                warnings.simplefilter("ignore", UserWarning)
                self._lock.acquire(timeout=0)
        except Timeout:
            return False
        except FileNotFoundError:  # another process created the folder, left it empty and has just removed it
            self._make_folder()
            return False
        return True

    def _recorded(self) -> Owner | None:
        """Replace a dead owner's record by ours; returns the owner if it is alive."""
        owner = self._read()
        if owner is None or owner.process.has_ended():
            if self._record.exists():
                self._record.unlink()
            now = datetime.now(UTC).isoformat(timespec="seconds")
            with suppress(FileExistsError), self._record.open("x", encoding="utf-8") as stream:
                json.dump(asdict(Owner(self._own, _command(), now)), stream)
                return None
            owner = self._read() or _UNKNOWN
        self._lock.release()
        return owner

    def _read(self) -> Owner | None:
        """The owner in the record; None without a readable one."""
        try:
            content = json.loads(self._record.read_text(encoding="utf-8"))
            process = content["process"]
            who = Process(str(process["host"]), int(process["pid"]), int(process["started_ticks"]))
            return Owner(who, str(content["command"]), str(content["since"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _command() -> str:
    """The command line of this process."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.stem == "__main__" else program.name
    return " ".join([name, *sys.argv[1:]])[:_LONGEST_COMMAND]
