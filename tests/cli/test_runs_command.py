"""`cmpagl runs list`: finished runs, the newest first; a broken one is named and left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

from tests.conftest import rewrite_info

Cmpagl = Callable[..., Result]


def put(tiny_run: Path, workspace: Path, name: str, made_at: str) -> Path:
    folder = workspace / "runs" / name
    shutil.copytree(tiny_run, folder)
    rewrite_info(folder, made_at=made_at)
    return folder


def test_runs_are_listed_the_newest_first(cmpagl: Cmpagl, tiny_run: Path, tmp_path: Path) -> None:
    put(tiny_run, tmp_path, "new", "2025-01-01T00:00:00.000000+00:00")
    put(tiny_run, tmp_path, "old", "2024-01-01T00:00:00.000000+00:00")  # was touched last
    rows = json.loads(cmpagl("runs", "list", "--format", "json").stdout)
    assert [row["name"] for row in rows] == ["new", "old"]
    assert rows[0]["dataset"] == "tiny"
    assert "new" in cmpagl("runs", "list").stdout


def test_a_broken_run_is_named_and_left_out(cmpagl: Cmpagl, tiny_run: Path, tmp_path: Path) -> None:
    put(tiny_run, tmp_path, "whole", "2024-01-01T00:00:00+00:00")
    (put(tiny_run, tmp_path, "broken", "2024-01-01T00:00:00+00:00") / "model.safetensors").unlink()
    result = cmpagl("runs", "list", "--format", "json")
    assert [row["name"] for row in json.loads(result.stdout)] == ["whole"]
    assert "broken is not a finished run: it has no model.safetensors" in result.stderr


def test_an_empty_workspace_says_how_to_fill_it(cmpagl: Cmpagl) -> None:
    result = cmpagl("runs", "list", "--format", "json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])
    assert "cmpagl train" in result.stderr
