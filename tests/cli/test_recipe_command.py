"""`cmpagl recipe`: what it shows can be used as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import parse_recipe, shipped_recipes

Cmpagl = Callable[..., Result]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("# My own recipe.\noptim:\n  lr: 2.0e-4  # higher\n", encoding="utf-8")
    return path


def test_list_names_every_shipped_recipe(cmpagl: Cmpagl) -> None:
    rows = json.loads(cmpagl("recipe", "list", "--format", "json").stdout)
    assert [row["name"] for row in rows] == list(shipped_recipes())


def test_show_keeps_the_comments(cmpagl: Cmpagl, mine: Path) -> None:
    assert cmpagl("recipe", "show", mine).stdout == mine.read_text(encoding="utf-8")


def test_show_resolved_reads_back_as_the_same_recipe(cmpagl: Cmpagl, mine: Path) -> None:
    shown = cmpagl("recipe", "show", mine, "--resolved").stdout
    assert parse_recipe(shown, "shown") == parse_recipe(mine.read_text(encoding="utf-8"), "mine")


def test_show_applies_overrides(cmpagl: Cmpagl, mine: Path) -> None:
    shown = cmpagl("recipe", "show", mine, "--set", "optim.lr=3.0e-4", "--set", "train.seed=7").stdout
    assert (parse_recipe(shown, "x").optim.lr, parse_recipe(shown, "x").train.seed) == (3e-4, 7)


def test_validate_says_valid_with_the_hash(cmpagl: Cmpagl, mine: Path) -> None:
    result = cmpagl("recipe", "validate", mine)
    assert result.exit_code == 0
    assert f"valid, sha256 {parse_recipe(mine.read_text(), 'mine').sha256()[:12]}" in result.stdout


def test_validate_ends_with_2_and_the_nearest_key(cmpagl: Cmpagl, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("data: {image_size: 224}\n")
    result = cmpagl("recipe", "validate", wrong)
    assert result.exit_code == 2
    assert "unknown key 'data.image_size'; did you mean 'image_size_px'?" in result.stderr


def test_schema_is_the_recipes(cmpagl: Cmpagl) -> None:
    schema = json.loads(cmpagl("recipe", "schema").stdout)
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False


def test_a_summary_adds_up(cmpagl: Cmpagl) -> None:
    result = cmpagl("recipe", "show", "rsicd", "--summary", "--format", "json")
    assert result.exit_code == 0, result.stderr
    *parts, total = json.loads(result.stdout)
    assert total["part"] == "total"
    for key in ("parameters", "trained", "flops"):
        assert sum(part[key] for part in parts) == total[key]
    assert (
        27e6 < sum(part["parameters"] for part in parts if "Gswin" in part["part"] or "backbone" in part["part"]) < 45e6
    )
