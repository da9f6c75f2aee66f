"""Names become folders inside the workspace, never outside; nothing named means the newest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.workspace import MARKERS, Kind, Workspace


def make(root: Path, kind: Kind, name: str, age_s: float = 0.0) -> Path:
    folder = root / kind / name
    folder.mkdir(parents=True)
    marker = folder / MARKERS[kind]
    marker.write_text("{}")
    written_at = marker.stat().st_mtime - age_s
    os.utime(marker, (written_at, written_at))
    return folder


def test_given_then_environment_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMPAGL_WORKSPACE", str(tmp_path / "named"))
    assert Workspace.locate(tmp_path / "given").root == tmp_path / "given"
    assert Workspace.locate().root == tmp_path / "named"
    monkeypatch.setenv("CMPAGL_WORKSPACE", "")
    assert Workspace.locate().root == Path()


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc", "a\\b", "-rf", ".hidden", "x" * 101, "a\n", "é"])
def test_a_name_cannot_leave_the_workspace(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a name"):
        Workspace(tmp_path).folder("runs", name)


def test_a_plain_name_is_a_folder(tmp_path: Path) -> None:
    assert Workspace(tmp_path).folder("runs", "ucm-cpu_2.1") == tmp_path / "runs" / "ucm-cpu_2.1"


def test_nothing_named_means_the_newest_finished_one(tmp_path: Path) -> None:
    make(tmp_path, "runs", "old", age_s=60)
    new = make(tmp_path, "runs", "new", age_s=30)
    (tmp_path / "runs" / "unfinished").mkdir()
    assert Workspace(tmp_path).find("runs") == new


def test_a_name_and_a_path_both_work(tmp_path: Path) -> None:
    folder = make(tmp_path, "data", "ucm")
    elsewhere = make(tmp_path / "elsewhere", "data", "ucm2")
    assert Workspace(tmp_path).find("data", "ucm") == folder
    assert Workspace(tmp_path).find("data", elsewhere) == elsewhere


@pytest.mark.parametrize(
    ("kind", "way_out"),
    [("data", "cmpagl prepare"), ("runs", "cmpagl train"), ("indexes", "cmpagl index")],
)
def test_an_empty_workspace_says_how_to_fill_it(tmp_path: Path, kind: Kind, way_out: str) -> None:
    with pytest.raises(DataError, match=f"nothing in .*{kind} yet.*{way_out}"):
        Workspace(tmp_path).find(kind)


def test_a_wrong_name_lists_what_is_there(tmp_path: Path) -> None:
    make(tmp_path, "data", "ucm")
    make(tmp_path, "data", "rsicd")
    with pytest.raises(DataError, match=r"no manifest\.json under usm .*there is rsicd, ucm"):
        Workspace(tmp_path).find("data", "usm")
