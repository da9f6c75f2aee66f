"""The study's controlled scenes: two captions of each sort, words evenly spread, the same from one seed."""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from cmpagl_core.recipe_files import load_recipe

STUDY = Path(__file__).parent.parent / "docs" / "study" / "context"


@pytest.fixture(scope="module")
def scenes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("context_scenes", STUDY / "scenes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_scene_has_two_captions_that_need_the_whole_image_and_two_that_do_not(
    scenes: ModuleType, tmp_path: Path
) -> None:
    scenes.draw(tmp_path, 180, 0)
    with (tmp_path / "captions.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    kinds: dict[str, list[str]] = {}
    for row in rows:
        kinds.setdefault(row["file"], []).append(scenes.KIND_OF[row["caption"]])
    assert len(kinds) == 180
    for found in kinds.values():
        assert len(set(found)) == 4
        assert sum(scenes.KINDS[kind].context for kind in found) == 2
    said = Counter(row["caption"] for row in rows)
    for kind in scenes.KINDS.values():
        counts = [said[caption] for caption in kind.captions]
        assert min(counts) > 0.4 * sum(counts) / len(counts), kind.captions  # no word is the safe guess
    assert {row["split"] for row in rows} == {"train", "val", "test"}


def test_a_scene_depends_on_seed_and_number_alone(scenes: ModuleType, tmp_path: Path) -> None:
    for name, count, seed in (("few", 3, 0), ("more", 6, 0), ("other", 3, 1)):
        (tmp_path / name).mkdir()
        scenes.draw(tmp_path / name, count, seed)
    for file in sorted((tmp_path / "few").glob("*.png")):
        assert file.read_bytes() == (tmp_path / "more" / file.name).read_bytes()
        assert file.read_bytes() != (tmp_path / "other" / file.name).read_bytes()


def test_the_studys_recipe_can_be_loaded() -> None:
    assert load_recipe(str(STUDY / "recipe.yaml")).image_encoder.global_window
