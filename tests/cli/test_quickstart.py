"""`make quickstart` finds airports near the sea among scenes that no training has seen, by the scenes' own truth."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from cmpagl_core.synthetic.truth import SceneTruth, read_truth, shows

MAKEFILE = Path(__file__).parents[2] / "Makefile"
SMALLER = (
    "data.image_size_px=96",
    "image_encoder.window_size=3",
    "fusion_encoder.enabled=false",
    "losses.itm=0.0",
    "train.batch_size=32",
    "train.epochs=4",
    "train.validate_every_epochs=4",
)


def quickstart_commands(workspace: Path) -> list[list[str]]:
    """The cmpagl calls of the Makefile's target, as a shell would split them."""
    text = MAKEFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    target = text.split("\nquickstart:")[1].split("\n\n")[0]
    lines = [line.strip() for line in target.splitlines() if line.strip().startswith("$(CMPAGL)")]
    return [shlex.split(line.replace("$(CMPAGL)", "").replace("$(WORKSPACE)", str(workspace))) for line in lines]


def found(answer: str, data: Path) -> list[SceneTruth]:
    hits: list[dict[str, Any]] = json.loads(answer)
    return [read_truth(data / "source" / "truth" / f"{hit['image_id']}.json") for hit in hits]


def airports_near_the_sea(truths: list[SceneTruth]) -> int:
    return sum(shows(truth, "airport") and shows(truth, "sea") for truth in truths)


@pytest.mark.parametrize("seed", [1])
def test_a_smaller_quickstart_finds_airports_near_the_sea_among_unseen_scenes(
    cmpagl: Callable[..., Result], tmp_path: Path, seed: int
) -> None:
    drawn = ("prepare", "synthetic", "--size", "96")
    overrides = [part for override in SMALLER for part in ("--set", override)]
    for call in (
        (*drawn, "--count", "120", "--seed", str(seed)),
        (*drawn, "--count", "60", "--seed", str(1000 + seed), "--name", "unseen"),
        ("train", "quickstart", "--data", "synthetic", "--seed", str(seed), *overrides),
        ("index", "--data", "unseen"),
    ):
        result = cmpagl(*call)
        assert result.exit_code == 0, result.output
    answer = cmpagl("retrieve", "airport near sea", "-k", "5", "--format", "json")
    truths = found(answer.stdout, tmp_path / "data" / "unseen")
    assert len(truths) == 5
    assert airports_near_the_sea(truths) >= 4, [truth.file for truth in truths]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_quickstart_of_the_makefile_finds_airports_near_the_sea_on_test_scenes(
    cmpagl: Callable[..., Result], tmp_path: Path, seed: int
) -> None:
    answer = ""
    for command in quickstart_commands(tmp_path):
        seeded = ["--seed", str(seed)] if command[0] in ("prepare", "train") else []
        machine = ["--format", "json"] if command[0] == "retrieve" else []
        result = cmpagl("--workspace", tmp_path, *command, *seeded, *machine)
        assert result.exit_code == 0, result.output
        answer = result.stdout
    truths = found(answer, tmp_path / "data" / "synthetic")
    assert len(truths) == 5
    assert airports_near_the_sea(truths) >= 4, [truth.file for truth in truths]
    assert "data:image/" in (tmp_path / "airport-near-sea.html").read_text(encoding="utf-8")
    assert (tmp_path / "runs" / "quickstart" / "curves.png").is_file()


def test_the_makefile_searches_the_test_scenes_alone() -> None:
    commands = {command[0]: command for command in quickstart_commands(Path("w"))}
    assert list(commands) == ["prepare", "train", "evaluate", "export", "retrieve"]
    exported = commands["export"]
    assert exported[exported.index("--split") + 1] == "test"
    retrieved = commands["retrieve"]
    assert retrieved[1] == "airport near sea"
    assert retrieved[retrieved.index("--features") + 1] == exported[exported.index("--out") + 1]
