"""A training killed at any moment goes on and ends with the very same weights as one that never was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmpagl_core.datasets.prepared import PreparedDataset
from tests.training.scripts import run_script

SCRIPT = Path(__file__).parent / "killed_training.py"
NEVER = "step:1000"

Results = dict[str, dict[str, str]]


def trained(squares: PreparedDataset, recipe: str, out: Path, *moments: str) -> Results:
    (out / "tiny.yaml").write_text(recipe)
    said = run_script(SCRIPT, out / "said", squares.root, out / "tiny.yaml", out / "runs", *moments)
    results: Results = json.loads(said)
    return results


def check_same_weights(results: Results) -> None:
    assert results[NEVER]["ended"] == "finished"
    assert {result["resumed"] for result in results.values()} == {"finished"}
    weights = {moment: result["weights"] for moment, result in results.items()}
    assert weights == dict.fromkeys(results, weights[NEVER])


def test_kills_and_interrupts_change_no_byte_of_the_weights(
    squares: PreparedDataset, tiny_yaml: str, tmp_path: Path
) -> None:
    results = trained(squares, tiny_yaml, tmp_path, NEVER, "step:5", "ctrl-c:5")
    check_same_weights(results)
    assert results["step:5"]["ended"] == "signal 9"
    assert results["ctrl-c:5"]["ended"] == (
        "130: training of ctrl-c-5 was stopped; its state is saved; "
        "resume it with `cmpagl train --resume --name ctrl-c-5`"
    )


@pytest.mark.slow
def test_a_kill_around_any_rename_and_after_any_step_changes_no_byte(
    squares: PreparedDataset, tiny_yaml: str, tmp_path: Path
) -> None:
    renames, steps = range(1, 14), range(1, 10)
    moments = [f"{when}:{number}" for when in ("before", "after") for number in renames]
    moments += [f"{what}:{number}" for what in ("step", "ctrl-c") for number in steps]
    check_same_weights(trained(squares, tiny_yaml, tmp_path, NEVER, *moments))


@pytest.mark.slow
def test_a_kill_changes_nothing_with_a_cached_backbone_either(
    squares: PreparedDataset, backbone_yaml: str, tmp_path: Path
) -> None:
    check_same_weights(trained(squares, backbone_yaml, tmp_path, NEVER, "step:2", "before:4", "ctrl-c:3"))
