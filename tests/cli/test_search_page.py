"""docs/search.md, command by command, on scenes with coordinates, 16 bits and four bands among them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rasterio.enums import ColorInterp

from cmpagl_core.ranking.kept_params import Chooser, write_params
from cmpagl_core.ranking.rerank import RerankParams
from cmpagl_core.runs import open_run
from tests.conftest import REPOSITORY, Cmpagl
from tests.imagery.making import UTM, write

PAGE = REPOSITORY / "docs" / "search.md"
COMMANDS = [
    line.partition("  #")[0].strip()
    for line in re.findall(r"^    (cmpagl .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
]
AREA = {"type": "Polygon", "coordinates": [[[13, 45], [14, 45], [14, 46], [13, 46], [13, 45]]]}


def make_place(folder: Path, images: Sequence[Path], run: Path, data: Path) -> None:
    """Everything that the page names: scenes stitched from images, a photograph, lists, a run and its data set."""
    shutil.copytree(run, folder / "runs" / "tiny")
    shutil.copytree(data, folder / "data" / "tiny")
    opened = open_run(folder / "runs" / "tiny")
    write_params(opened.root, Chooser.of_run(opened), {"cosine": RerankParams(dual_softmax=20.0)})
    tiles = [np.asarray(Image.open(path).convert("RGB").resize((64, 64))) for path in images[:4]]
    planes = np.block([[[tiles[0].transpose(2, 0, 1), tiles[1].transpose(2, 0, 1)]]])
    planes = np.concatenate([planes, np.block([[[tiles[2].transpose(2, 0, 1), tiles[3].transpose(2, 0, 1)]]])], axis=1)
    deep = np.concatenate([planes[::-1], planes[:1]]).astype(np.uint16) * 12 + 300  # blue, green, red, near-infrared
    colours = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    write(folder / "scenes" / "town_20240612.tif", deep, colours=colours, **UTM)
    write(folder / "scenes" / "port_20230101.tif", planes, photometric="RGB", **UTM)
    shutil.copyfile(images[4], folder / "mine.jpg")
    (folder / "photos").mkdir()
    for path in images[:3]:
        shutil.copyfile(path, folder / "photos" / path.name)
    (folder / "area.geojson").write_text(json.dumps(AREA))
    (folder / "queries.txt").write_text("a runway\na harbour\n")
    (folder / "classes.txt").write_text("airport\nharbour\nforest\n")


def run_page(cmpagl: Cmpagl, folder: Path) -> None:
    assert len(COMMANDS) >= 28
    made = cmpagl("index", "--data", "tiny", "--name", "tiny")
    assert made.exit_code == 0, made.output
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        result = cmpagl(*words)
        assert result.exit_code == 0, (command, result.output)
        if words[0] == "retrieve":
            assert result.stdout.strip() or "--out" in words, command
    hits = json.loads((folder / "found.geojson").read_text())["features"]
    assert len(hits) == 8
    for hit in hits:
        ring = np.array(hit["geometry"]["coordinates"][0])
        assert np.abs(ring - [13.73, 45.15]).max() < 0.05  # where the scenes were put
    assert {path.suffix for path in folder.glob("found.*")} == {".html", ".geojson", ".gpkg", ".csv"}
    assert len(list((folder / "crops").glob("*.png"))) == 8
    assert (folder / "heat.tif").is_file()


def test_every_command_of_the_page_runs(
    cmpagl: Cmpagl, tiny_images: Path, tiny_run: Path, tiny_prepared: Path, tmp_path: Path
) -> None:
    make_place(tmp_path, sorted(tiny_images.rglob("*.jpg")), tiny_run, tiny_prepared)
    run_page(cmpagl, tmp_path)


@pytest.mark.real
def test_every_command_of_the_page_runs_on_real_images(
    cmpagl: Cmpagl, real_data: Path, tiny_run: Path, tiny_prepared: Path, tmp_path: Path
) -> None:
    images = [real_data / "ucm" / "images" / f"{number}.jpg" for number in (1, 300, 900, 1300, 2000)]
    make_place(tmp_path, images, tiny_run, tiny_prepared)
    run_page(cmpagl, tmp_path)


def test_no_filter_of_the_page_is_idle(
    cmpagl: Cmpagl, tiny_images: Path, tiny_run: Path, tiny_prepared: Path, tmp_path: Path
) -> None:
    make_place(tmp_path, sorted(tiny_images.rglob("*.jpg")), tiny_run, tiny_prepared)
    assert cmpagl("index", "scenes", "--tile", "64", "--name", "archive").exit_code == 0

    def found(*filters: str) -> list[str]:
        return cmpagl("retrieve", "a square", "-k", "8", "--format", "paths", *filters).stdout.split()

    town, port = (str(tmp_path / "scenes" / name) for name in ("town_20240612.tif", "port_20230101.tif"))
    assert set(found()) == {town, port}
    assert found("--from", "2024-05", "--to", "2024-06") == [town]
    assert found("--to", "2023") == [port]
    assert found("--scene", "port*") == [port]
    for outside in (("--bbox", "0,0,1,1"), ("--near", "0,0", "--within", "5km"), ("--from", "2025")):
        assert found(*outside) == []
