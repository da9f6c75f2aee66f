"""Two processes never write the same thing at once, and a dead one is in nobody's way."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cmpagl_core.errors import BusyError, CmpaglError
from cmpagl_core.files import partial_prefix, write_text
from cmpagl_core.locks import hold, sweep_lock
from cmpagl_core.processes import Process, own_process

HOLDER = """
import sys
from pathlib import Path
from cmpagl_core.files import partial_prefix
from cmpagl_core.locks import hold
target = Path(sys.argv[1])
with hold(target):
    target.mkdir(parents=True, exist_ok=True)
    (target / f"{partial_prefix(target / 'big.bin')}x.partial").write_text("half")
    (target / f"{partial_prefix(target / 'source')}x.partial").mkdir()
    print("held", flush=True)
    sys.stdin.readline()
"""

ADDER = """
import sys
from pathlib import Path
from cmpagl_core.files import write_text
from cmpagl_core.locks import hold
target = Path(sys.argv[1])
for _ in range(20):
    with hold(target, wait=lambda sentence: None):
        write_text(target, str(int(target.read_text()) + 1))
"""

FORKER = """
import os, sys
from pathlib import Path
from cmpagl_core.locks import hold
target = Path(sys.argv[1])
record = target.with_name(f".{target.name}.lock.json")
parent = os.getpid()
try:
    with hold(target):
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            assert record.exists()
finally:
    if os.getpid() != parent:
        os._exit(0)
assert not record.exists()
"""


@contextmanager
def another(script: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A process that runs the script; it is killed in the end."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def holding(target: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `target`, with a partial file and a partial folder in it."""
    with another(HOLDER, target) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def partials(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.partial"))


def test_a_second_writer_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "tiny"
    with holding(target) as other:
        with pytest.raises(BusyError) as refused, hold(target, instead="choose another --name"):
            pass
        assert len(partials(target)) == 2  # a living process's
    sentence = (
        rf"runs/tiny is being written by process {other.pid} on {re.escape(socket.gethostname())} \(-c .*, since "
    )
    assert re.search(sentence, str(refused.value))
    assert str(refused.value).endswith("; wait until it has ended, or choose another --name")
    assert refused.value.exit_code == 1


def test_a_lock_is_free_again_and_leaves_nothing(tmp_path: Path) -> None:
    with hold(tmp_path / "a"):
        (tmp_path / "a").write_text("x")
    with hold(tmp_path / "a"), hold(tmp_path / "b"):
        pass
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_failing_writer_lets_go_and_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), hold(tmp_path / "runs" / "a" / "b"):
        raise ValueError("broken")
    assert not (tmp_path / "runs").exists()
    with hold(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a").touch()
    assert list(tmp_path.glob("runs/*")) == [tmp_path / "runs" / "a"]


def test_a_disk_without_locks_is_locked_by_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with hold(tmp_path / "a"), pytest.raises(BusyError, match=f"process {os.getpid()} on"), hold(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_killed_owners_lock_is_taken_over_and_its_partials_are_swept(tmp_path: Path) -> None:
    target = tmp_path / "tiny"
    living = target / f"{partial_prefix(target / 'other')}x.partial"  # of this process
    with holding(target) as other:
        living.write_text("half")
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        with hold(target):  # before anyone waited for the dead process: it is a zombie still
            assert partials(target) == [living]
    assert not list(tmp_path.glob(".*.lock*"))


def record_of(target: Path, process: Process) -> Path:
    path = target.parent / f".{target.name}.lock.json"
    about = {"host": process.host, "pid": process.pid, "started_ticks": process.started_ticks}
    path.write_text(json.dumps({"process": about, "command": "cmpagl train", "since": "2026-01-01T00:00:00+00:00"}))
    return path


def test_another_hosts_lock_is_never_taken_over(tmp_path: Path) -> None:
    record = record_of(tmp_path / "tiny", Process("elsewhere", 77, 5))
    with pytest.raises(BusyError) as refused, hold(tmp_path / "tiny"):
        pass
    assert "process 77 on elsewhere (cmpagl train, since 2026-01-01" in str(refused.value)
    assert str(refused.value).endswith(f"if it no longer runs there, remove {record}")
    record.unlink()
    with hold(tmp_path / "tiny"):
        pass


def test_a_folder_has_one_lock_by_all_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "link").symlink_to("tiny")
    monkeypatch.chdir(tmp_path)
    with hold(Path("tiny")), pytest.raises(BusyError, match="link is being written"), hold(tmp_path / "link"):
        pass


def test_a_pid_that_was_given_out_again_is_another_process(tmp_path: Path) -> None:
    own = own_process()
    if not own.started_ticks:
        pytest.skip("this system does not say when a process was started")
    record_of(tmp_path / "tiny", Process(own.host, own.pid, own.started_ticks - 1))
    with hold(tmp_path / "tiny"):
        taken_over = (tmp_path / ".tiny.lock.json").read_text(encoding="utf-8")
    assert str(own.started_ticks) in taken_over
    assert not (tmp_path / ".tiny.lock.json").exists()


def test_a_living_process_of_this_host_is_respected_though_its_lock_file_is_gone(tmp_path: Path) -> None:
    with holding(tmp_path / "tiny") as other:
        (tmp_path / ".tiny.lock").unlink()
        with pytest.raises(BusyError, match=f"process {other.pid} on"), hold(tmp_path / "tiny"):
            pass


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": 3}'])
def test_a_record_that_was_broken_off_is_nobodys(tmp_path: Path, text: str) -> None:
    (tmp_path / ".tiny.lock.json").write_text(text)
    with hold(tmp_path / "tiny"):
        assert json.loads((tmp_path / ".tiny.lock.json").read_text())["process"]["pid"] == os.getpid()


def test_who_waits_is_told_once_and_goes_on_when_the_other_has_ended(tmp_path: Path) -> None:
    told: list[str] = []
    with holding(tmp_path / "tiny") as other:

        def wait(sentence: str) -> None:
            told.append(sentence)
            other.communicate("\n")

        with hold(tmp_path / "tiny", wait):
            pass
    assert len(told) == 1
    assert told[0].startswith(f"waiting: {tmp_path / 'tiny'} is being written by process {other.pid} on ")


def test_no_update_is_lost(tmp_path: Path) -> None:
    write_text(tmp_path / "count", "0")
    with another(ADDER, tmp_path / "count") as first, another(ADDER, tmp_path / "count") as second:
        assert (first.wait(30), second.wait(30)) == (0, 0)
    assert (tmp_path / "count").read_text() == "40"
    assert list(tmp_path.iterdir()) == [tmp_path / "count"]


def test_partials_of_other_hosts_and_of_unknown_writers_stay(tmp_path: Path) -> None:
    target = tmp_path / "tiny"
    target.mkdir()
    kept = [target / ".a.0123abcd-1-1.x.partial", target / ".a.x.partial", target / "mine.partial"]
    dead = Process(own_process().host, 2**22 + 1, 1).tag  # no pid is that high
    swept = [target / f".a.b.{dead}.x.partial", tmp_path / f".tiny.{dead}.x.partial"]
    (target / "resume").mkdir()
    swept.append(target / "resume" / f".state.{dead}.x.partial")
    for path in (*kept, *swept):
        path.write_text("half")
    with hold(target):
        pass
    assert [path.exists() for path in (*kept, *swept)] == [True] * 3 + [False] * 3


def test_a_pipe_or_a_device_has_no_lock(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", Path(os.devnull)):
        with hold(target), hold(target):
            assert not (target.parent / f".{target.name}.lock").exists()


def test_partials_beside_what_a_link_leads_to_are_swept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/file")
    dead = Process(own_process().host, 2**22 + 1, 1).tag
    left = tmp_path / "real" / f".file.{dead}.x.partial"
    left.write_text("half")
    with hold(tmp_path / "link"):
        assert not left.exists()


def test_a_place_that_cannot_be_written_is_named() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("this system has no /proc")
    with pytest.raises(CmpaglError, match=r"cannot lock /proc/none/tiny \("), hold(Path("/proc/none/tiny")):
        pass


def test_a_fork_does_not_let_go_of_its_parents_lock(tmp_path: Path) -> None:
    with another(FORKER, tmp_path / "tiny") as process:
        assert process.wait(30) == 0


def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cmpagl_core.locks.json.dump", full)
    with pytest.raises(CmpaglError, match="No space left"), hold(tmp_path / "folder" / "tiny"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_dead_lock_on_what_was_finished_is_swept_and_a_living_one_stays(tmp_path: Path) -> None:
    record = record_of(tmp_path / "tiny", Process(own_process().host, 2**22 + 1, 1))
    (tmp_path / ".tiny.lock").touch()
    sweep_lock(tmp_path / "tiny")
    assert not list(tmp_path.iterdir())
    with hold(tmp_path / "tiny"):
        sweep_lock(tmp_path / "tiny")
        assert record.exists()
