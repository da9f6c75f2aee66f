"""A command as a child process: its time is bounded, and it may save its state before it ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
GRACE_S = 20.0
"""After SIGINT and before SIGKILL."""


@dataclass(frozen=True)
class Ending:
    """How a command ended, and its stdout as far as it came."""

    code: int
    stdout: str
    timed_out: bool = False
    interrupted: bool = False


def run_child(command: Sequence[str], log: Path, limit_s: float) -> Ending:
    """Run it in the root of the checkout; its stdout goes into `log` beside its stderr.

    In a session of its own: it is told to stop once, by us, whether the time is up or the user has pressed Ctrl-C.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    printed = log.with_suffix(".out")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    with log.open("w", encoding="utf-8") as err, printed.open("w", encoding="utf-8") as out:
        child = subprocess.Popen(
            command, stdout=out, stderr=err, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, start_new_session=True
        )
        timed_out = interrupted = False
        try:
            child.wait(limit_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        except KeyboardInterrupt:
            interrupted = True
        if timed_out or interrupted:
            _stop(child)
    stdout = printed.read_text(encoding="utf-8")
    printed.unlink()
    with log.open("a", encoding="utf-8") as file:
        file.write(stdout)
    return Ending(child.returncode, stdout, timed_out, interrupted)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ask the command to stop, then end it and whatever it has started."""
    child.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
