"""Two and five processes at once at what writes: each comes out whole or is told who is at it, and the end is one's.

Trainings, studies, evaluations and galleries meet in tests/training/test_two_at_once.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def at_once(folder: Path, *options: str) -> dict[str, dict[str, Any]]:
    """What became of each work; all is whole, and who did not do it was told who is at it."""
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "at_once.py", folder, *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(REPOSITORY), *sys.path))},
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results: dict[str, dict[str, Any]] = json.loads(done.stdout)
    for work, told in results.items():
        assert 0 in told["codes"], (work, told["said"])
        for code, said in zip(told["codes"], told["said"], strict=True):
            assert code == 0 or (code == 1 and "is being written by process" in said), (work, said)
        assert (told["broken"], told["left"], told["differences"]) == ([], [], []), work
    return results


def test_processes_at_the_same_work_leave_what_one_leaves(tmp_path: Path) -> None:
    assert len(at_once(tmp_path)) == 8


@pytest.mark.slow
def test_five_trainings_evaluations_and_studies_at_once(tmp_path: Path) -> None:
    results = at_once(tmp_path, "--whole")
    assert len(results) == 8
    assert results["5 train"]["codes"] == [0] * 5
    assert results["5 train"]["runs"] == 5
