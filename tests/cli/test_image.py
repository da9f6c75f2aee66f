"""`cmpagl image` shows what a model sees: bands, stretch, tiles, place, day; and what is not clear."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from cmpagl_core.imagery.images import open_image
from cmpagl_core.imagery.reading import Reading
from tests.conftest import Cmpagl
from tests.imagery.making import UTM, ground, write


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    planes = ground(side=600).astype(np.uint16)
    return write(tmp_path / "a_20200102.tif", planes, nodata=0, photometric="RGB", **UTM)


def test_a_scene_is_described_as_json(cmpagl: Cmpagl, scene: Path) -> None:
    result = cmpagl("image", scene, "--tile", "256", "--format", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    rendered = found.pop("rendered")
    assert found == {
        "path": str(scene), "format": "GTiff", "width": 600, "height": 600,
        "bands": "3 bands of uint16 (red, green, blue)", "nodata": [0.0], "crs": "EPSG:32633",
        "bounds": [400_000.0, 4_994_000.0, 406_000.0, 5_000_000.0], "bounds_from": None, "gsd_m": 10.0,
        "date": "2020-01-02", "date_from": "file name", "unclear": None, "tile_px": 256, "tiles": 9,
    }  # fmt: skip
    assert rendered.startswith("bands 1,2,3 (colour interpretation), stretched from ")


def test_a_table_names_what_is_known(cmpagl: Cmpagl, scene: Path) -> None:
    shown = cmpagl("image", scene).stdout
    for words in ("EPSG:32633", "400000, 4994000, 406000, 5000000", "2020-01-02", "3 bands of uint16", "seen as"):
        assert words in shown
    assert "unclear" not in shown


def test_the_png_is_what_the_model_sees_with_its_tiles(cmpagl: Cmpagl, scene: Path, tmp_path: Path) -> None:
    assert cmpagl("image", scene, "--out", tmp_path / "p.png", "--tile", "0").exit_code == 0
    with Image.open(tmp_path / "p.png") as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(open_image(scene)))
    assert cmpagl("image", scene, "--out", tmp_path / "p.png", "--tile", "256", "--size", "300").exit_code == 0
    with Image.open(tmp_path / "p.png") as shown:
        lines = np.asarray(shown)
    assert lines.shape == (300, 300, 3)
    for place in (0, 127, 128, 171, 255, 299):  # edges of the tiles at 0, 256 and 344 of 600
        assert (lines[place] == (255, 214, 0)).all(axis=1).any()
    assert (
        cmpagl("image", scene, "--bands", "3,3,3", "--stretch", "range:0,9000", "--out", tmp_path / "p.png").exit_code
        == 0
    )
    with Image.open(tmp_path / "p.png") as shown:
        expected = open_image(scene, reading=Reading("3,3,3", "range:0,9000"))
        assert np.array_equal(np.asarray(shown), np.asarray(expected))


def test_what_is_unclear_is_said_and_refused_as_an_image(cmpagl: Cmpagl, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ground(bands=13, side=64).astype(np.uint16), nodata=float(0))
    result = cmpagl("image", path)
    assert result.exit_code == 0
    assert "13 bands of uint16" in result.stdout
    assert "pass --bands 4,3,2 or a preset" in result.stderr
    result = cmpagl("image", path, "--out", tmp_path / "p.png")
    assert result.exit_code == 3
    assert not (tmp_path / "p.png").exists()
    assert cmpagl("image", path, "--out", tmp_path / "p.png", "--bands", "sentinel-2").exit_code == 0


def test_a_plain_image_is_as_it_is(cmpagl: Cmpagl, tiny_images: Path) -> None:
    path = next(tiny_images.rglob("*.jpg"))
    found = json.loads(cmpagl("image", path, "--format", "json").stdout)
    assert (found["format"], found["rendered"], found["tiles"]) == ("JPEG", "unchanged", 1)


def test_a_large_scene_is_shown_small(cmpagl: Cmpagl, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    options = {"tiled": True, "sparse_ok": True, "photometric": "RGB", "nodata": 0}
    with rasterio.open(
        path, "w", driver="GTiff", width=12_000, height=9_000, count=3, dtype="uint16", **options
    ) as file:
        file.write(np.full((3, 512, 512), 900, dtype=np.uint16), window=rasterio.windows.Window(0, 0, 512, 512))
    result = cmpagl("image", path, "--out", tmp_path / "p.png", "--format", "json")
    assert json.loads(result.stdout)["tiles"] == 24 * 18
    with Image.open(tmp_path / "p.png") as shown:
        assert shown.size == (1024, 768)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--tile", "3"), 2, "--tile 3 is not a valid tile size"),
        (("--tile", "64", "--tile-m", "9"), 2, "both say how large a tile is"),
        (("--bands", "x"), 2, "--bands 'x' is not a choice of bands"),
        (("--tile-m", "50"), 3, "50 m are 5 pixels"),
    ],
)
def test_wrong_options_are_one_sentence(
    cmpagl: Cmpagl, scene: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    result = cmpagl("image", scene, *words)
    assert (result.exit_code, said in result.stderr) == (code, True), result.output


def test_what_is_no_image_is_said(cmpagl: Cmpagl, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_text("no image")
    assert "is not an image of a known format" in cmpagl("image", tmp_path / "a.tif").stderr
    assert "does not exist" in cmpagl("image", tmp_path / "b.tif").stderr
    assert cmpagl("image", tmp_path).exit_code == 3
