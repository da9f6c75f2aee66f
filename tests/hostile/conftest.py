"""What every hostile case must leave: an exit code and a sentence, never a traceback or an error of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from typer.testing import Result

from cmpagl_core.errors import ExitCode

FORBIDDEN = ("unexpected", "Traceback")

Cmpagl = Callable[..., Result]
Told = Callable[..., str]


def check_output(output: str) -> None:
    """Neither a traceback nor an error that nobody foresaw."""
    assert [word for word in FORBIDDEN if word in output] == []


@pytest.fixture
def told(cmpagl: Cmpagl) -> Told:
    """Call a command that must end with `code`; what it wrote to stdout and stderr."""

    def call(*arguments: str | Path, code: ExitCode) -> str:
        result = cmpagl(*arguments)
        check_output(result.output)
        assert result.exit_code == code, result.output
        return result.output

    return call


def run_process(
    *arguments: str | Path, cwd: Path, environment: Mapping[str, str] | None = None, timeout_s: float = 120
) -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own, as a shell would start it."""
    return subprocess.run(
        [sys.executable, "-m", "cmpagl_cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        check=False,
        timeout=timeout_s,
    )
