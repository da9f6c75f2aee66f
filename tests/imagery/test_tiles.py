"""Scenes are cut into complete tiles that cover them, and know where on the Earth they lie and when they were taken."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import Affine

from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.imagery.geo import gsd_m
from cmpagl_core.imagery.image_ref import Geo, ImageRef, Scene, Window
from cmpagl_core.imagery.pieces import pieces_of, scene_of, windows_of
from cmpagl_core.imagery.scene_pool import SCENES
from cmpagl_core.imagery.tiles import Tiling
from tests.imagery.making import UTM, ground, write

SCENE = Path("a.tif")


def scene(path: Path) -> Scene:
    SCENES.close()  # else what was known of an earlier file beside it would still be
    return scene_of(ImageRef(path.name, path))


@given(st.integers(1, 700), st.integers(1, 700), st.integers(16, 300), st.sampled_from([0.0, 0.1, 0.5, 0.9]))
def test_tiles_are_complete_cover_all_and_overlap(width: int, height: int, size: int, overlap: float) -> None:
    tiling = Tiling(size_px=size, overlap=overlap)
    windows = tiling.windows(SCENE, width, height, size)
    seen = np.zeros((height, width), dtype=bool)
    for window in windows:
        assert (window.width, window.height) == (min(size, width), min(size, height))
        assert window.left + window.width <= width
        assert window.top + window.height <= height
        seen[window.top : window.top + window.height, window.left : window.left + window.width] = True
    assert seen.all()
    assert len(set(windows)) == len(windows)
    lefts = sorted({window.left for window in windows})
    assert all(second - first <= size * (1 - overlap) + 1 for first, second in itertools.pairwise(lefts))


@pytest.mark.parametrize(
    "tiling", [Tiling(), Tiling(overlap=0.25), Tiling(0), Tiling(256, None, 0.1), Tiling(None, 300.0, 0.9)]
)
def test_a_tiling_is_spelled_and_read_again(tiling: Tiling) -> None:
    assert Tiling.parse(str(tiling)) == tiling


def test_what_makes_no_tiling_is_refused() -> None:
    for wrong, said in (
        ({"size_px": 8}, "--tile 8 is not a valid"),
        ({"size_px": 256, "size_m": 300.0}, "both say how large"),
        ({"size_m": -1.0}, "--tile-m -1 is not a valid"),
        ({"overlap": 0.95}, "--overlap 0.95 is not a valid"),
    ):
        with pytest.raises(UsageError, match=said):
            Tiling(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="tiling 'x' is not known"):
        Tiling.parse("x")
    with pytest.raises(DataError, match=r"cut into 3,906,250,000 tiles, more than 1,000,000; choose larger"):
        Tiling(16).windows(SCENE, 1_000_000, 1_000_000, 16)


def test_what_is_over_four_megapixels_is_cut_unless_told_otherwise() -> None:
    assert Tiling().tile_px(SCENE, 2_000, 2_000, None) == 0
    assert Tiling().tile_px(SCENE, 2_001, 2_000, None) == 512
    assert Tiling(0).tile_px(SCENE, 20_000, 20_000, None) == 0
    assert Tiling(256).tile_px(SCENE, 256, 256, None) == 0
    assert Tiling(256).tile_px(SCENE, 257, 256, None) == 256


def test_metres_become_pixels_by_the_ground_sampling_distance(tmp_path: Path) -> None:
    tiling = Tiling(size_m=300.0)
    assert tiling.tile_px(SCENE, 2_000, 2_000, 10.0) == 30
    assert tiling.tile_px(SCENE, 200, 200, None) == 0  # too small to be asked
    with pytest.raises(DataError, match=r"does not say how large a pixel is in metres; give --tile in pixels"):
        tiling.tile_px(SCENE, 20_000, 2_000, None)
    with pytest.raises(DataError, match=r"300 m are 10 pixels of a.tif, at 30 m each"):
        tiling.tile_px(SCENE, 2_000, 2_000, 30.0)
    degrees = {"crs": "EPSG:4326", "transform": Affine(1e-4, 0, 15, 0, -1e-4, 60)}
    feet = {"crs": "EPSG:2263", "transform": Affine(3, 0, 9e5, 0, -3, 2e5)}
    for name, place, expected in (("a", UTM, 10.0), ("b", degrees, 11.132 * 0.5**0.5), ("c", feet, 3 * 0.3048)):
        found = scene(write(tmp_path / f"{name}.tif", ground(1, 64).astype(np.uint16), **place))
        assert gsd_m(found.geo, found.width, found.height) == pytest.approx(expected, rel=2e-3)
    assert gsd_m(Geo(), 64, 64) is None


def test_a_tile_knows_its_bounds(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ground(side=300).astype(np.uint16), photometric="RGB", **UTM)
    image = ImageRef("a.tif", path)
    found = scene_of(image)
    tiles = pieces_of(image, found, windows_of(image, found, Tiling(128)))
    assert [tile.image_id for tile in tiles[:3]] == ["a.tif#0,0", "a.tif#128,0", "a.tif#172,0"]
    with rasterio.open(path) as file:
        for tile in tiles:
            assert tile.window is not None
            window = rasterio.windows.Window(tile.window.left, tile.window.top, 128, 128)
            assert tile.bounds == pytest.approx(rasterio.windows.bounds(window, file.transform))
        whole = pieces_of(image, found, [])[0]
        assert whole.bounds == pytest.approx(tuple(file.bounds))
    assert {tile.scene.geo.crs for tile in tiles if tile.scene is not None} == {"EPSG:32633"}
    assert len({tile.scene.rendering for tile in tiles if tile.scene is not None}) == 1


def test_ground_control_points_and_rpcs_give_bounds_about(tmp_path: Path) -> None:
    planes = ground(1, 100).astype(np.uint16)
    corners = [(0, 0, 15.0, 50.0), (0, 100, 15.1, 50.0), (100, 0, 15.0, 49.9), (100, 100, 15.1, 49.9)]
    points = [GroundControlPoint(row, column, x, y) for row, column, x, y in corners]
    path = write(tmp_path / "gcps.tif", planes)
    with rasterio.open(path, "r+") as file:
        file.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    found = scene(path).geo
    assert found.about == "gcps"
    assert found.bounds(Window(0, 0, 100, 100)) == pytest.approx((15.0, 49.9, 15.1, 50.0), abs=1e-3)
    one, zero = [1.0] + [0.0] * 19, [0.0] * 20
    x, y = zero.copy(), zero.copy()
    x[1], y[2] = 1.0, -1.0
    path = write(tmp_path / "rpcs.tif", planes)
    with rasterio.open(path, "r+") as file:
        file.rpcs = RPC(100.0, 500.0, 49.95, 0.05, one, y, 50.0, 50.0, 15.05, 0.05, one, x, 50.0, 50.0)
    found = scene(path).geo
    assert (found.about, found.crs) == ("rpcs", "EPSG:4326")
    assert found.bounds(Window(0, 0, 100, 100)) == pytest.approx((15.0, 49.9, 15.1, 50.0), abs=2e-3)


def test_a_place_that_makes_no_sense_is_none(tmp_path: Path) -> None:
    for transform in (Affine(float("nan"), 0, 0, 0, -1, 0), Affine(1, 1, 0, 1, 1, 0)):
        path = write(tmp_path / "a.tif", ground(1, 64).astype(np.uint16), crs="EPSG:32633", transform=transform)
        assert scene(path).geo.transform is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("S2A_MSIL1C_20170105T013442_N0204_R031_T53NMJ.tif", "2017-01-05"),
        ("LC08_L2SP_012034_20200229_20200908_02_T1.tif", "2020-02-29"),
        ("tile-2021-12-31.tif", "2021-12-31"),
        ("m_4012345_ne_18_060_20190704.tif", "2019-07-04"),
        ("20190231_19990101.tif", "1999-01-01"),  # there is no 31st of February
        ("12345678901234.tif", ""),
    ],
)
def test_the_day_is_in_the_name(tmp_path: Path, name: str, expected: str) -> None:
    path = write(tmp_path / name, ground(1, 64).astype(np.uint16))
    assert scene(path).geo.date == expected


def test_a_stac_item_and_tags_say_the_day(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ground(1, 64).astype(np.uint16))
    with rasterio.open(path, "r+") as file:
        file.update_tags(TIFFTAG_DATETIME="2020:05:06 07:08:09")
    assert (scene(path).geo.date, scene(path).geo.dated_by) == ("2020-05-06", "TIFF tag")
    item = path.with_suffix(".json")
    for content in ({}, [], {"stac_version": "1.0.0", "properties": {"datetime": 3}}, {"properties": None}):
        item.write_text(json.dumps(content))
        assert scene(path).geo.dated_by == "TIFF tag"
    item.write_text("{" * 100_000)
    assert scene(path).geo.dated_by == "TIFF tag"
    item.write_text(json.dumps({"stac_version": "1.0.0", "properties": {"datetime": "2019-03-04T10:11:12Z"}}))
    assert (scene(path).geo.date, scene(path).geo.dated_by) == ("2019-03-04", "STAC item")


def test_a_scene_of_gigapixels_is_looked_at_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    options = {"tiled": True, "sparse_ok": True, "bigtiff": "yes", "nodata": 0}
    with rasterio.open(path, "w", driver="GTiff", width=90_000, height=60_000, count=1, dtype="uint16", **options):
        pass
    found = scene(path)
    assert (found.width, found.height) == (90_000, 60_000)
    assert len(windows_of(ImageRef("a", path), found, Tiling(512))) == 176 * 118


def test_an_image_is_looked_at_by_its_header_and_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8)).save(tmp_path / "photo_20200102.jpg", exif=exif)
    found = scene(tmp_path / "photo_20200102.jpg")
    assert (found.width, found.height, found.geo.date) == (8, 12, "2020-01-02")
