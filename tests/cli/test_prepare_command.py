"""`cmpagl prepare` as the shell sees it: exit codes, sentences, tables and JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Cmpagl

LIGHT = """
import sys
from typer.testing import CliRunner
from cmpagl_cli.app import app
result = CliRunner().invoke(app, sys.argv[1:])
heavy = [name for name in ("torch", "pandas", "transformers", "timm") if name in sys.modules]
print(result.exit_code, "up to date" in result.output, heavy)
"""


@pytest.fixture
def classes(tiny_images: Path, tmp_path: Path) -> Path:
    """The tiny images, one folder per class, writable."""
    target = tmp_path / "mine"
    for path in tiny_images.rglob("*.jpg"):
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        os.link(path, target / path.parent.name / path.name)
    return target


def test_a_folder_is_prepared_and_then_up_to_date(cmpagl: Cmpagl, classes: Path) -> None:
    first = cmpagl("prepare", "folder", classes, "--name", "mine")
    second = cmpagl("prepare", "folder", classes, "--name", "mine")
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert "mine: prepared in" in first.stdout
    assert "mine: up to date in" in second.stdout
    assert "80% train / 10% val / 10% test, assigned by image with seed 0 (ours)" in first.stderr


def test_json_tells_what_was_made(cmpagl: Cmpagl, classes: Path) -> None:
    result = cmpagl("prepare", "folder", classes, "--split", "0.5,0.25,0.25", "--format", "json", "--quiet")
    told = json.loads(result.stdout)
    assert {split: count["images"] for split, count in told["counts"].items()} == {"train": 6, "val": 3, "test": 3}
    assert (told["name"], told["up_to_date"], told["complete"]) == ("folder", False, True)
    assert result.stderr == ""


def test_scenes_are_drawn_by_count_and_seed(cmpagl: Cmpagl) -> None:
    result = cmpagl("prepare", "synthetic", "--count", 3, "--seed", 5, "--size", 64, "--format", "json")
    assert result.exit_code == 0
    assert sum(count["images"] for count in json.loads(result.stdout)["counts"].values()) == 3


def test_what_is_wrong_is_exit_3_and_one_sentence(cmpagl: Cmpagl, classes: Path) -> None:
    broken = classes / "north" / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    result = cmpagl("prepare", "folder", classes)
    assert result.exit_code == 3
    assert "folder has problems (unreadable image: 1)" in result.stderr
    assert "north/broken.jpg: " in result.stderr
    assert "Traceback" not in result.stderr
    lenient = cmpagl("prepare", "folder", classes, "--skip-missing")
    assert lenient.exit_code == 0
    assert "1 entries left out; see `dropped` in" in lenient.stderr


@pytest.mark.parametrize("name", ["rsicd", "rsitmd", "ucm", "sydney"])
def test_without_a_source_it_says_what_to_put_where(cmpagl: Cmpagl, name: str) -> None:
    result = cmpagl("prepare", name)
    assert result.exit_code == 3
    assert f"put into data/raw/{name} the images" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("prepare", "folder"), "write `cmpagl prepare folder DIR`"),
        (("prepare", "ucm", "--count", "3"), "`prepare ucm` does not take --count"),
        (("prepare", "folder", "x", "--split", "1,2"), "--split '1,2' is not three numbers"),
        (("prepare", "synthetic", "--name", "../x"), "'../x' is not a valid name"),
        (("prepare", "synthetic", "--size", "7"), "cannot draw scenes of 7 px"),
    ],
)
def test_what_makes_no_sense_is_exit_2(cmpagl: Cmpagl, arguments: tuple[str, ...], sentence: str) -> None:
    result = cmpagl(*arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_up_to_date_is_said_without_importing_anything_heavy(cmpagl: Cmpagl, classes: Path) -> None:
    """That is what keeps it under two seconds."""
    assert cmpagl("prepare", "folder", classes).exit_code == 0
    arguments = [sys.executable, "-c", LIGHT, "prepare", "folder", str(classes)]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert told.stdout.strip() == "0 True []"
