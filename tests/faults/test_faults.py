"""Commands killed at, or out of disk at, anything they do to a file: nothing is lost, torn or left behind.

Here are a few moments of a few commands; `make faults` tries all (docs/reliability.md).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="preloads a library that cc compiles"
)


def swept(tmp_path: Path, *options: str) -> list[dict[str, object]]:
    """The results of sweep.py."""
    counter, out = tmp_path / "counter.so", tmp_path / "results.json"
    flags = ("-O1", "-Wall", "-Werror", "-shared", "-fPIC")
    subprocess.run(["cc", *flags, "-o", counter, HERE / "counter.c", "-ldl"], check=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(counter),
        "PYTHONPATH": os.pathsep.join((str(REPOSITORY), *sys.path)),
    }
    command = [sys.executable, HERE / "sweep.py", counter, out, "--folder", tmp_path, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results: list[dict[str, object]] = json.loads(out.read_text())
    return results


def check(results: list[dict[str, object]]) -> None:
    assert [(one["case"], one["fault"], one["failures"]) for one in results if one["failures"]] == []
    assert all(one["events"] for one in results)


def test_a_few_moments_of_preparing_and_indexing(tmp_path: Path) -> None:
    faults = ("--fault", "kill", "--fault", "full")
    cases = ("--case", "prepare --copy", "--case", "index update with a fake model")
    check(swept(tmp_path, *faults, *cases, "--points", "2"))


@pytest.mark.slow
def test_every_moment_of_every_command(tmp_path: Path) -> None:
    every = ("kill", "full", "random", "bad", "gone", "clock")
    check(swept(tmp_path, *(word for fault in every for word in ("--fault", fault))))
