"""A synthetic set on disk is whole, the same for the same seed, and its truth can be read back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.progress import Silent
from cmpagl_core.synthetic.generate import draw_scene, generate
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
