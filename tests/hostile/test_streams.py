"""Closed and full streams, terminals without Unicode, a current folder that is gone: a sentence and an exit code."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pytest

from cmpagl_cli.views import emit
from cmpagl_core.errors import ExitCode
from tests.conftest import REPOSITORY
from tests.hostile.conftest import check_output

Told = Callable[..., str]

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
posix = pytest.mark.skipif(os.name != "posix", reason="a POSIX shell redirects")

LIST, HELP, VALIDATE = ("recipe", "list"), ("recipe", "--help"), ("recipe", "validate", "nosuch")
REDIRECTED = {
    "a closed stdout": (LIST, ">&-", ExitCode.DONE),
    "a closed stderr": (LIST, "2>&-", ExitCode.DONE),
    "all closed": (LIST, "<&- >&- 2>&-", ExitCode.DONE),
    "help without stdout": (HELP, ">&-", ExitCode.DONE),
    "an error without stderr": (VALIDATE, "2>&-", ExitCode.USAGE),
    "a usage error without stderr": (("recipe", "nosuch"), "2>&-", ExitCode.USAGE),
    "a full stdout": (LIST, ">/dev/full", ExitCode.FAILURE),
    "help to a full stdout": (HELP, ">/dev/full", ExitCode.FAILURE),
    "the version to a full stdout": (("--version",), ">/dev/full", ExitCode.FAILURE),
    "a full stderr": (LIST, "2>/dev/full", ExitCode.DONE),
    "an error to a full stderr": (VALIDATE, "2>/dev/full", ExitCode.USAGE),
    "both full": (LIST, ">/dev/full 2>&1", ExitCode.FAILURE),
    "a reader that has enough": (LIST, "| true", ExitCode.DONE),
}


def shell(words: Sequence[str], redirection: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Call the command line from a shell, which redirects its streams."""
    call = f'"{sys.executable}" -m cmpagl_cli {" ".join(words)} {redirection}'
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {call}"], cwd=folder, capture_output=True,
        text=True, encoding="utf-8", errors="surrogateescape", check=False, timeout=120,
    )  # fmt: skip


@posix
@needs_full
@pytest.mark.parametrize(("words", "redirection", "code"), REDIRECTED.values(), ids=REDIRECTED)
def test_a_stream_that_takes_nothing_is_no_surprise(
    words: tuple[str, ...], redirection: str, code: ExitCode, tmp_path: Path
) -> None:
    done = shell(words, redirection, tmp_path)
    check_output(done.stdout + done.stderr)
    assert done.returncode == code, done.stderr
    if ">/dev/full" in redirection and "2>" not in redirection:
        assert "No space left on device" in done.stderr


@dataclass(frozen=True)
class Call:
    """A command line, called by many_calls.py."""

    words: tuple[str, ...]
    encoding: str
    cwd: str
    is_anyone: bool = False


def called(calls: Sequence[Call]) -> list[tuple[int, str]]:
    """Exit code and output of each."""
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "many_calls.py"], input=json.dumps([asdict(call) for call in calls]),
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(REPOSITORY), *sys.path))},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return [(answer["code"], answer["output"]) for answer in json.loads(done.stdout)]


def words_of(call: Call) -> str:
    return f"{call.words[0]} {call.encoding}{' as anyone' if call.is_anyone else ''}"


COMMANDS: tuple[tuple[str, ...], ...] = (LIST, ("recipe", "validate", "r\u00e9cip\u00e9 \u4e2d"), ("doctor",))
PREPARE = ("prepare", "folder", "mine", "--name", "mine")
AS_ANYONE: tuple[tuple[str, ...], ...] = (("retrieve", "x"), ("runs", "list"), ("doctor",))


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, tiny_images: Path) -> dict[Call, tuple[int, str]]:
    """Of each command in each encoding in an empty folder, and as anyone where nothing may be read or written."""
    empty, closed = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("closed")
    read_only = tmp_path_factory.mktemp("read-only")
    shutil.copytree(tiny_images, read_only / "mine")
    read_only.chmod(0o555)
    folders = [closed / kind for kind in ("indexes", "runs", "data")]
    for folder in folders:
        (folder / "x").mkdir(parents=True)
        folder.chmod(0)
    calls = [Call(words, encoding, str(empty)) for words in COMMANDS for encoding in ("cp1252", "ascii", "utf-8")]
    if sys.platform == "linux":  # which has capabilities to be dropped
        calls += [Call(words, "utf-8", str(closed), is_anyone=True) for words in AS_ANYONE]
        calls.append(Call(PREPARE, "utf-8", str(read_only), is_anyone=True))
    told = dict(zip(calls, called(calls), strict=True))
    for folder in (*folders, read_only):
        folder.chmod(0o755)
    return told


@posix
def test_any_terminal_can_show_what_is_written(answers: dict[Call, tuple[int, str]]) -> None:
    for call, (code, output) in answers.items():
        check_output(output)
        assert code in (0, 1, 2, ExitCode.DATA if call.is_anyone else 0), words_of(call)
        assert output, words_of(call)


@posix
def test_folders_that_may_not_be_read_or_written_are_named(answers: dict[Call, tuple[int, str]]) -> None:
    for call, (code, output) in answers.items():
        if call.is_anyone:
            assert code in (ExitCode.DONE, ExitCode.FAILURE, ExitCode.DATA), output
        if call.words[0] == "retrieve":
            assert "cannot be read" in output
        if call.words == PREPARE:
            assert "Permission denied" in output


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("format", ["json", "jsonl"])
def test_json_is_json_in_every_encoding(
    encoding: str, format: Literal["json", "jsonl"], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "\u4e2d\u00e9\U0001f600"
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding, errors="backslashreplace"))
    emit([{"name": name}], ["name"], format)
    assert name in str(json.loads(written.getvalue().decode(encoding)))


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from cmpagl_cli.app import app

    call = ["recipe", "validate", "nosuch"]
    assert "\x1b[" in CliRunner().invoke(app, call, color=True).output
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in CliRunner().invoke(app, call, color=True).output


@posix
def test_a_deleted_current_folder_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = (
        "import os, sys; os.rmdir(os.getcwd()); sys.argv = ['cmpagl', 'runs', 'list']; "
        "import cmpagl_cli.entry; cmpagl_cli.entry.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=gone, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, timeout=120,
    )  # fmt: skip
    check_output(done.stderr)
    assert "the current folder no longer exists" in done.stderr
    assert done.returncode == ExitCode.USAGE


@pytest.mark.parametrize(
    ("option", "said"),
    [(("--threads", "99999999"), "99,999,999 threads are not between 1 and"),
     (("--device", "meta"), "device 'meta' is not available here"),
     (("--device", "hpu"), "device 'hpu' is not available here"),
     (("--device", ""), "device '' is not available here"),
     (("--device", "cuda:99999999999999999999"), "is not available here")],
)  # fmt: skip
def test_a_device_or_thread_count_that_cannot_be_is_refused(
    option: tuple[str, str], said: str, told: Told, tiny_prepared: Path
) -> None:
    workspace = ("--workspace", tiny_prepared.parent.parent)
    assert said in told(*workspace, *option, "train", "ucm-cpu", "--dry-run", code=ExitCode.USAGE)
