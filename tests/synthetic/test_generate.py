"""A synthetic set on disk is whole, the same for the same seed, and its truth can be read back."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from PIL import Image

from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.progress import Silent
from cmpagl_core.synthetic import drawing
from cmpagl_core.synthetic.generate import generate
from cmpagl_core.synthetic.scene import draw_scene
from cmpagl_core.synthetic.truth import read_truth, shows


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes_and_a_longer_set_only_adds_scenes(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 3), ("longer", 5)):
        generate(tmp_path / name, count, seed=4, image_size_px=64, progress=Silent())
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    longer = everything(tmp_path / "longer")
    for path, content in everything(tmp_path / "a").items():
        assert longer[path].startswith(content) if path == "captions.csv" else longer[path] == content


@pytest.mark.parametrize("command", [sys.executable, "false", "/no/such/python"])
def test_several_processes_draw_the_same_set_even_if_all_but_one_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    generate(tmp_path / "alone", 12, seed=4, image_size_px=64, progress=Silent())
    monkeypatch.setattr(drawing, "LEAST_PER_PROCESS", 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(sys, "executable", command)
    monkeypatch.setattr(drawing, "draw_into", slowly(drawing.draw_into))  # so that the others get some
    generate(tmp_path / "together", 12, seed=4, image_size_px=64, progress=Silent())
    assert everything(tmp_path / "together") == everything(tmp_path / "alone")


def test_helpers_end_with_the_process_that_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    original = subprocess.Popen

    def remembered(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(original(*arguments, **options))
        return started[-1]

    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(drawing, "LEAST_PER_PROCESS", 500)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(subprocess, "Popen", remembered)
    monkeypatch.setattr(drawing, "draw_into", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, 1000, seed=4, image_size_px=64, progress=Silent())
    assert len(started) == 1
    assert started[0].returncode is not None


def slowly(work: Callable[..., None]) -> Callable[..., None]:
    def wait_and_work(*arguments: Any) -> None:
        time.sleep(0.2)
        work(*arguments)

    return wait_and_work


def test_captions_file_and_truth_belong_to_the_images(tmp_path: Path) -> None:
    generate(tmp_path, 6, seed=1, image_size_px=64, progress=Silent())
    with (tmp_path / "captions.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["file", "caption", "split", "scene"]
    assert len(rows) == 6 * 5
    for name in {row["file"] for row in rows}:
        truth = read_truth(tmp_path / "truth" / f"{Path(name).stem}.json")
        own = [row for row in rows if row["file"] == name]
        assert truth.captions == tuple(row["caption"] for row in own)
        assert {row["scene"] for row in own} == {truth.scene} == {name.split("_")[0]}
        assert len({row["split"] for row in own}) == 1
        with Image.open(tmp_path / "images" / name) as image:
            assert image.size == (64, 64)
            assert image.mode == "RGB"


def test_truth_is_read_back_as_it_was(tmp_path: Path) -> None:
    generate(tmp_path, 1, seed=9, image_size_px=64, progress=Silent())
    drawn = draw_scene(0, seed=9, image_size_px=64).truth
    read = read_truth(tmp_path / "truth" / f"{Path(drawn.file).stem}.json")
    assert read == drawn
    assert shows(read, "airport")
    assert not shows(read, "volcano")


def test_a_broken_truth_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "airport_00000.json"
    with pytest.raises(DataError, match=r"airport_00000\.json does not exist"):
        read_truth(path)
    path.write_text(json.dumps({"format_version": 99}), encoding="utf-8")
    with pytest.raises(DataError, match="not a scene's truth of version 1"):
        read_truth(path)
    path.write_text(json.dumps({"format_version": 1, "file": "x.png"}), encoding="utf-8")
    with pytest.raises(DataError, match="not a whole truth file"):
        read_truth(path)


@pytest.mark.parametrize(("count", "seed", "size"), [(0, 0, 64), (5, -1, 64), (5, 0, 16)])
def test_what_cannot_be_drawn_is_refused_before_anything_is_written(
    tmp_path: Path, count: int, seed: int, size: int
) -> None:
    with pytest.raises(UsageError, match="cannot draw"):
        generate(tmp_path / "set", count, seed, size, Silent())
    assert not (tmp_path / "set").exists()
