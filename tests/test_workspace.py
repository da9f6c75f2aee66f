"""Names become folders inside the workspace, never outside; nothing named means the newest."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.processes import Process, own_process
from cmpagl_core.workspace import MARKERS, ArtefactKind, Workspace


def make(root: Path, kind: ArtefactKind, name: str, day: int = 1) -> Path:
    folder = root / kind / name
    folder.mkdir(parents=True)
    (folder / MARKERS[kind]).write_text(f'{{"made_at": "2024-01-{day:02d}T00:00:00.000000+00:00"}}')
    return folder


def test_given_then_environment_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMPAGL_WORKSPACE", str(tmp_path / "named"))
    assert Workspace.locate(tmp_path / "given").root == tmp_path / "given"
    assert Workspace.locate().root == tmp_path / "named"
    monkeypatch.setenv("CMPAGL_WORKSPACE", "")
    assert Workspace.locate().root == Path()


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc", "a\\b", "-rf", ".hidden", "x" * 101, "a\n", "é"])
def test_a_name_cannot_leave_the_workspace(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not a valid name"):
        Workspace(tmp_path).folder("runs", name)


def test_a_plain_name_is_a_folder(tmp_path: Path) -> None:
    assert Workspace(tmp_path).folder("runs", "ucm-cpu_2.1") == tmp_path / "runs" / "ucm-cpu_2.1"


def test_nothing_named_means_the_newest_finished_one(tmp_path: Path) -> None:
    new = make(tmp_path, "runs", "new", day=2)
    make(tmp_path, "runs", "old", day=1)  # written last, and touched last
    (tmp_path / "runs" / "unfinished").mkdir()
    assert Workspace(tmp_path).find("runs") == new
    make(tmp_path, "runs", "broken")
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"broken/run\.json:1: not valid JSON"):
        Workspace(tmp_path).find("runs")


def test_the_data_set_that_was_selected_is_meant_before_the_newest(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    new, old = make(tmp_path, "data", "new", day=2), make(tmp_path, "data", "old", day=1)
    assert workspace.find("data") == new
    workspace.select_data("old")
    assert workspace.find("data") == old
    (old / "manifest.json").unlink()
    assert workspace.find("data") == new
    (tmp_path / "data" / ".selected").write_text("../elsewhere")
    assert workspace.find("data") == new


def test_a_name_and_a_path_both_work(tmp_path: Path) -> None:
    folder = make(tmp_path, "data", "ucm")
    elsewhere = make(tmp_path / "elsewhere", "data", "ucm2")
    assert Workspace(tmp_path).find("data", "ucm") == folder
    assert Workspace(tmp_path).find("data", elsewhere) == elsewhere


@pytest.mark.parametrize(
    ("kind", "way_out"),
    [("data", "cmpagl prepare"), ("runs", "cmpagl train"), ("indexes", "cmpagl index")],
)
def test_an_empty_workspace_says_how_to_fill_it(tmp_path: Path, kind: ArtefactKind, way_out: str) -> None:
    with pytest.raises(DataError, match=f"nothing in .*{kind} yet.*{way_out}"):
        Workspace(tmp_path).find(kind)


def test_a_wrong_name_lists_what_is_there(tmp_path: Path) -> None:
    make(tmp_path, "data", "ucm")
    make(tmp_path, "data", "rsicd")
    with pytest.raises(DataError, match=r"no manifest\.json under usm .*available: rsicd, ucm"):
        Workspace(tmp_path).find("data", "usm")


def test_selecting_a_data_set_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    dead = Process(own_process().host, 2**22 + 1, 1).tag  # no pid is that high
    make(tmp_path, "data", "mine")
    (tmp_path / "data" / f"..selected.{dead}.x.partial").write_text("oth")
    Workspace(tmp_path).select_data("mine")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [".selected", "mine"]
    assert Workspace(tmp_path).find("data") == tmp_path / "data" / "mine"
