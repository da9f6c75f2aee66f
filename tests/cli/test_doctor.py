"""The doctor names what is broken and how it is mended, and never breaks itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from cmpagl_core import device, doctor
from cmpagl_core.doctor import Check, examine, is_well, matching_torchvision
from cmpagl_core.workspace import Workspace


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "bf16_gain", lambda device: 2.0)
    monkeypatch.setattr(device, "_computes", lambda *_: True)


def named(checks: tuple[Check, ...], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_this_installation_is_well(tmp_path: Path) -> None:
    checks = examine(Workspace(tmp_path))
    assert [check for check in checks if check.status == "broken"] == []
    assert is_well(checks)
    assert named(checks, "torch pair").found.startswith("torch ")
    assert str(tmp_path) in named(checks, "workspace").found


def test_a_torchvision_of_another_torch_is_broken_and_says_which_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.20.1" if name == "torchvision" else version(name))
    pair = named(examine(Workspace(tmp_path)), "torch pair")
    assert pair.status == "broken"
    minor = int(version("torch").split(".")[1])
    assert f"torchvision==0.{minor + 15}.*" in pair.mend


@pytest.mark.parametrize(("torch_version", "expected"), [("2.5.1+cpu", "0.20.*"), ("2.14.1", "0.29.*")])
def test_known_pairs(torch_version: str, expected: str) -> None:
    assert f"torchvision=={expected}" in matching_torchvision(torch_version)


def test_a_package_below_its_bound_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.26.4" if name == "numpy" else version(name))
    numpy = named(examine(Workspace(tmp_path)), "numpy")
    assert (numpy.status, numpy.found) == ("broken", "1.26.4")
    assert "pip install 'numpy>=2" in numpy.mend


def test_a_missing_package_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_timm(name: str) -> str:
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_timm)
    assert named(examine(Workspace(tmp_path)), "timm").status == "broken"


def test_a_device_that_is_not_here_is_broken(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has what the test takes to be missing")
    check = named(examine(Workspace(tmp_path), "cuda:7"), "device")
    assert check.status == "broken"
    assert "cuda:7" in check.found


def test_slow_bf16_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "bf16_gain", lambda device: 0.3)
    precision = named(examine(Workspace(tmp_path)), "precision")
    assert precision.status == "note"
    assert "precision=fp32" in precision.mend


def test_a_processor_without_bf16_instructions_is_said_and_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_computes", lambda *_: False)
    monkeypatch.setattr(doctor, "bf16_gain", lambda device: pytest.fail("measured"))
    expected = "cpu has no bf16 instructions, so recipes run in fp32"
    assert named(examine(Workspace(tmp_path), "cpu"), "precision") == Check("precision", expected)


def test_a_workspace_that_is_a_file_is_broken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert named(examine(Workspace(tmp_path / "file")), "workspace").status == "broken"


def test_an_unfinished_run_is_noted(tmp_path: Path) -> None:
    (tmp_path / "runs" / "half").mkdir(parents=True)
    (tmp_path / "runs" / "ablations").mkdir()
    (tmp_path / "runs" / "whole").mkdir()
    (tmp_path / "runs" / "whole" / "run.json").write_text("{}")
    runs = named(examine(Workspace(tmp_path)), "runs")
    assert runs == Check("runs", "whole; unfinished: half", "note", "finish with `cmpagl train --resume`, or remove")


def test_the_command_ends_with_1_when_something_is_broken(cmpagl: Callable[..., Result], tmp_path: Path) -> None:
    well = cmpagl("doctor", "--json")
    assert well.exit_code == 0
    assert json.loads(well.stdout)["ok"] is True
    (tmp_path / "file").write_text("")
    broken = cmpagl("doctor", "--json", "--workspace", tmp_path / "file")
    assert broken.exit_code == 1
    assert json.loads(broken.stdout)["ok"] is False


def test_the_measured_gain_is_a_plausible_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 0.001 < doctor.bf16_gain("cpu") < 1000
