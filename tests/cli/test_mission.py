"""The four commands of the README as they are written, from downloaded files to an ablation, on a small RSICD."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from PIL import Image

from cmpagl_core.datasets import building, prepare, request
from cmpagl_core.datasets.published import PUBLISHED
from tests.conftest import TINY_RECIPE, Cmpagl

SPLITS = {"train": 12, "val": 4, "test": 4}
PLACES = ("airport", "beach", "park", "port")
EPOCHS = "train: {precision: fp32, epochs: 1, batch_size: 6}"


@pytest.fixture
def small_rsicd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RSICD's layout in data/raw/rsicd, where it is looked for; the published counts are those of so few images."""
    small = replace(PUBLISHED["rsicd"], **SPLITS)
    for module in (building, prepare, request):
        monkeypatch.setattr(module, "PUBLISHED", MappingProxyType({**PUBLISHED, "rsicd": small}))
    rng = np.random.default_rng(0)
    raw = tmp_path / "data" / "raw" / "rsicd"
    (raw / "RSICD_images").mkdir(parents=True)
    images = []
    for number, split in enumerate(split for split, count in SPLITS.items() for _ in range(count)):
        place = PLACES[number % len(PLACES)]
        name = f"{place}_{number + 1}.jpg"
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(raw / "RSICD_images" / name)
        sentences = [{"raw": f"a {place} number {number} near the sea , seen {time} times ."} for time in range(5)]
        images.append({"filename": name, "imgid": number, "split": split, "sentences": sentences})
    (raw / "dataset_rsicd.json").write_text(json.dumps({"dataset": "rsicd", "images": images}), encoding="utf-8")


@pytest.mark.usefixtures("small_rsicd")
def test_the_four_commands_run_as_they_are_written(cmpagl: Cmpagl, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(TINY_RECIPE.replace("train: {precision: fp32}", EPOCHS), encoding="utf-8")
    for command in (("prepare", "rsicd"), ("train", "recipe.yaml")):
        result = cmpagl(*command)
        assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "data" / "rsicd" / "manifest.json").read_text())["complete"] is True
    assert (tmp_path / "runs" / "recipe" / "model.safetensors").is_file()

    answer = cmpagl("retrieve", "airport near sea", "--format", "json")
    assert answer.exit_code == 0, answer.output
    hits = json.loads(answer.stdout)
    assert [hit["rank"] for hit in hits] == list(range(1, len(hits) + 1))
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert all((tmp_path / hit["path"]).is_file() for hit in hits)

    table = cmpagl("ablate", "--no-global-window", "--format", "json")
    assert table.exit_code == 0, table.output
    assert [row["variant"] for row in json.loads(table.stdout)["rows"]] == ["baseline", "no-global-window"]
