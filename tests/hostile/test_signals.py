"""SIGINT, SIGTERM and SIGHUP: one sentence and exit 130 from every long command, nothing half written, and a way on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import Result

from cmpagl_core.errors import ExitCode
from cmpagl_core.interruption import Interruption
from cmpagl_core.progress import Advance
from tests.conftest import TINY_RECIPE
from tests.hostile.conftest import check_output

Cmpagl = Callable[..., Result]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Signalling:
    """A progress that sends this process a signal at the first image, and only once."""

    def __init__(self, number: int) -> None:
        self.number: int | None = number
        self.said: list[str] = []

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Advance]:
        yield self._advance

    def say(self, message: str) -> None:
        self.said.append(message)

    def _advance(self, done: int) -> None:
        number, self.number = self.number, None
        if number is not None:
            os.kill(os.getpid(), number)


@pytest.fixture
def workspace(tiny_run: Path, tmp_path: Path) -> Path:
    """A workspace of its own with the tiny data set and run, and a recipe."""
    for kind in ("data", "runs"):
        shutil.copytree(tiny_run.parent.parent / kind / "tiny", tmp_path / kind / "tiny")
    short = TINY_RECIPE.replace("train: {", "train: {epochs: 2, batch_size: 2, ")
    (tmp_path / "tiny.yaml").write_text(short, encoding="utf-8")
    return tmp_path


COMMANDS = {
    "prepare": ("prepare", "synthetic", "--count", "10", "--size", "64"),
    "export": ("export", "--split", "test"),
    "index": ("index",),
    "retrieve": ("retrieve", "a square"),
    "evaluate": ("evaluate", "--split", "test"),
    "tune": ("tune", "smr", "--split", "val"),
    "train": ("train", "tiny.yaml", "--data", "tiny", "--name", "new"),
    "ablate": ("ablate", "tiny.yaml", "--data", "tiny", "--no-global-window"),
    "report": ("report",),
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_every_long_command_stops_at_a_signal_and_goes_on_when_called_again(
    words: tuple[str, ...], cmpagl: Cmpagl, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmpagl_core.training.loop.draw_curves", lambda root, progress: None)
    progress = Signalling(signal.SIGHUP if words[0] in ("export", "index") else signal.SIGTERM)
    monkeypatch.setattr("cmpagl_cli.app.make_progress", lambda quiet: progress)
    with Interruption().caught():
        stopped = cmpagl(*words)
    check_output(stopped.output)
    assert progress.number is None, "no signal was sent"
    assert stopped.exit_code == ExitCode.INTERRUPTED, stopped.output
    assert "again" in stopped.output or "--resume" in stopped.output
    assert list(workspace.rglob("*.partial")) == []
    again = ("train", "--resume") if words[0] == "train" else words
    result = cmpagl(*again)
    assert result.exit_code == ExitCode.DONE, result.output


def test_a_training_stopped_before_its_first_state_does_not_advise_to_resume(
    cmpagl: Cmpagl, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("cmpagl_core.training.loop.begin", interrupted)
    with Interruption().caught():
        stopped = cmpagl(*COMMANDS["train"])
    assert stopped.exit_code == ExitCode.INTERRUPTED
    assert "before its first step" in stopped.output
    assert "--resume" not in stopped.output


AT_AN_IMPORT = """
import os, signal, sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.{number})
sys.meta_path.insert(0, Interrupts())
sys.argv = ["cmpagl", "recipe", "list"]
import cmpagl_cli.entry
cmpagl_cli.entry.main()
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("module", ["typer", "rich", "yaml"])
def test_a_signal_during_the_imports_is_one_sentence(module: str, number: str, tmp_path: Path) -> None:
    code = AT_AN_IMPORT.format(module=module, number=number)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, timeout=120,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    check_output(done.stdout + done.stderr)
    assert done.stderr.startswith("error: interrupted")
    assert done.returncode == ExitCode.INTERRUPTED


def test_signals_together_are_one_wish() -> None:
    interruption = Interruption()
    with interruption.caught():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)  # while the first is being obeyed
    assert interruption.asked


def test_what_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption().caught():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
