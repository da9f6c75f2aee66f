"""An index of scenes holds their tiles: each with its place, only what changed encoded again, broken parts left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from cmpagl_core.errors import InterruptedByUserError, UsageError
from cmpagl_core.imagery.image_ref import ImageRef, Window
from cmpagl_core.imagery.reader import open_ref
from cmpagl_core.imagery.reading import DEFAULT, Reading
from cmpagl_core.imagery.tiles import Tiling
from cmpagl_core.progress import Silent
from cmpagl_core.search import feature_cache
from cmpagl_core.search.build import IndexRequest
from cmpagl_core.search.gallery_source import folder_source
from cmpagl_core.search.index import open_index
from cmpagl_core.search.indexing import BuiltIndex, build_index
from tests.conftest import Told
from tests.imagery.making import UTM, ground, write

TILES = Tiling(64)
TILED = {"tiled": True, "blockxsize": 64, "blockysize": 64, "photometric": "RGB", "compress": "deflate"}


@pytest.fixture
def encoder(fake_encoder: Any) -> Any:
    return fake_encoder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two scenes of 256 x 256 pixels, the first with a quarter of no data, and a plain image."""
    planes = ground(side=256, low=200).astype(np.uint16)
    planes[:, :128, :128] = 0
    write(tmp_path / "scenes" / "a_20200102.tif", planes, nodata=0, **TILED, **UTM)
    write(tmp_path / "scenes" / "b.tif", ground(side=256, seed=1).astype(np.uint16), **TILED)
    Image.fromarray(ground(side=64, high=255, seed=2).astype(np.uint8).transpose(1, 2, 0)).save(
        tmp_path / "scenes" / "c.png"
    )
    return tmp_path / "scenes"


def make(
    encoder: Any, folder: Path, tiling: Tiling = TILES, reading: Reading = DEFAULT, told: Silent | None = None
) -> BuiltIndex:
    return build_index(encoder, folder_source(folder, reading, tiling), folder.parent / "index", told or Silent())


def test_scenes_are_cut_and_empty_tiles_dropped(encoder: Any, folder: Path) -> None:
    told = Told()
    built = make(encoder, folder, told=told)
    assert (len(built.index), built.encoded, built.scenes, built.empty, built.left_out) == (29, 29, 2, 4, ())
    assert told.messages == ["32 tiles are cut out of 2 scenes"]
    ids = list(built.index.image_ids)
    assert ids == sorted(ids)
    tile = built.index.image(ids.index("a_20200102.tif#128,64"))
    assert tile.window == Window(128, 64, 64, 64)
    assert tile.bounds == pytest.approx((401_280, 4_998_720, 401_920, 4_999_360))
    assert tile.scene is not None
    assert tile.scene.rendering is not None
    assert (tile.scene.geo.crs, tile.scene.geo.date) == ("EPSG:32633", "2020-01-02")
    with rasterio.open(folder / "a_20200102.tif") as file:
        planes = file.read().astype(float)
    low, high = tile.scene.rendering.lows[0], tile.scene.rendering.highs[0]
    expected = ((planes[0, 64:128, 128:192] - low) / (high - low) * 255).clip(0, 255)
    assert np.abs(np.asarray(open_ref(tile))[..., 0] - expected).max() <= 0.51
    plain = built.index.image(ids.index("c.png"))
    assert (plain.window, plain.scene) == (None, None)


def test_a_second_run_encodes_nothing_and_opens_no_scene(
    encoder: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(encoder, folder)
    content = {path.name: path.read_bytes() for path in first.index.root.glob("*.safetensors")}
    encoder.images.clear()

    def opened(*_: object) -> None:
        raise AssertionError("a scene was opened")

    monkeypatch.setattr("cmpagl_core.imagery.scene_pool.ScenePool.opened", opened)
    again = make(encoder, folder)
    assert (again.encoded, again.empty, len(again.index), encoder.images) == (0, 4, 29, [])
    assert {path.name: path.read_bytes() for path in first.index.root.glob("*.safetensors")} == content


def test_only_a_changed_scene_is_tiled_again(encoder: Any, folder: Path) -> None:
    make(encoder, folder)
    write(folder / "b.tif", ground(side=256, seed=3).astype(np.uint16), **TILED)
    shutil.move(folder / "a_20200102.tif", folder / "moved_20200102.tif")
    encoder.images.clear()
    built = make(encoder, folder)
    assert {image.path.name for image in encoder.images} == {"b.tif", "moved_20200102.tif"}
    assert (built.encoded, len(built.index), built.empty) == (16, 29, 4)  # of the moved one, only what shows nothing
    anew = build_index(encoder, folder_source(folder, Reading(), Tiling(64)), folder.parent / "anew", Silent())
    np.testing.assert_array_equal(built.index.image_features, anew.index.image_features)


def test_another_tiling_keeps_what_is_whole_and_another_stretch_keeps_nothing(encoder: Any, folder: Path) -> None:
    make(encoder, folder)
    told = Told()
    built = make(encoder, folder, Tiling(128), told=told)
    assert (built.encoded, len(built.index), built.empty) == (7, 8, 1)
    assert "1 of 8 images are unchanged and keep their features" in told.messages
    told = Told()
    built = make(encoder, folder, Tiling(128), Reading(stretch="range:0,5000"), told)
    assert (built.encoded, len(built.index)) == (8, 8)
    assert told.messages[0] == (
        "index index is rebuilt: its images were read with bands auto, stretch auto, "
        "and now it is bands auto, stretch range:0,5000"
    )


def test_an_interrupted_scene_goes_on_at_its_tile(encoder: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoder.encode_images

    def broken_off(images: list[ImageRef]) -> Iterator[Any]:
        for number, batch in enumerate(whole(images)):
            if number == 5:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(feature_cache, "_IMAGES_PER_PART", 4)
    with monkeypatch.context() as patched:
        patched.setattr(encoder, "encode_images", broken_off)
        with pytest.raises(InterruptedByUserError, match="the 21 finished ones are kept"):
            make(encoder, folder)
    built = make(encoder, folder)
    assert (built.encoded, len(built.index), built.empty) == (8, 29, 4)
    anew = build_index(encoder, folder_source(folder, Reading(), Tiling(64)), folder.parent / "anew", Silent())
    np.testing.assert_array_equal(built.index.image_features, anew.index.image_features)


@pytest.mark.parametrize("size", [64, 32])
def test_a_broken_block_loses_its_tiles_and_not_the_scene(encoder: Any, folder: Path, size: int) -> None:
    path = folder / "b.tif"
    with rasterio.open(path) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_1_2", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[offset : offset + 200] = bytes(200)
    path.write_bytes(content)
    built = make(encoder, folder, Tiling(size))
    lost = [f"b.tif#{left},{top}" for top in range(128, 192, size) for left in range(64, 128, size)]
    assert [one.image.image_id for one in built.left_out] == lost
    assert f"{size} x {size} pixels at 64, 128" in built.left_out[0].why
    assert len(built.index) == (1 - 1 / 8) * 2 * (256 // size) ** 2 + (64 // size) ** 2 - len(lost)
    encoder.images.clear()
    assert len(make(encoder, folder, Tiling(size)).left_out) == len(lost)
    assert encoder.images == []


def test_a_scene_that_is_unclear_is_left_out_until_it_is_told(encoder: Any, folder: Path) -> None:
    write(folder / "d.tif", ground(bands=13, side=256).astype(np.uint16))
    built = make(encoder, folder)
    assert [one.image.image_id for one in built.left_out] == ["d.tif"]
    assert "pass --bands 4,3,2 or a preset" in built.left_out[0].why
    (folder / "a_20200102.tif").unlink()
    (folder / "b.tif").unlink()
    told = make(encoder, folder, reading=Reading("sentinel-2"))
    assert (len(told.left_out), told.scenes, told.index.info.bands) == (0, 1, "sentinel-2")
    again = open_index(folder.parent / "index")
    assert again.image(3).reading == Reading("sentinel-2")


def test_large_images_are_tiles_too(encoder: Any, tmp_path: Path) -> None:
    pixels = ground(side=300, high=255).astype(np.uint8).transpose(1, 2, 0)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    built = make(encoder, tmp_path / "images", Tiling(128))
    assert len(built.index) == 9
    tile = built.index.image(list(built.index.image_ids).index("a.png#172,128"))
    assert np.array_equal(np.asarray(open_ref(tile)), pixels[128:256, 172:300])


def test_what_an_image_of_another_folder_is_told_of_metres(encoder: Any, folder: Path) -> None:
    built = make(encoder, folder, Tiling(None, 640.0))
    assert {window.width for window in (image.window for image in map(built.index.image, range(12))) if window} == {64}
    assert "b.tif" in list(built.index.image_ids)  # small, and its metres are not known: whole


def test_tiles_and_bands_are_for_folders() -> None:
    with pytest.raises(UsageError, match="are for a folder: a data set's images were settled by `cmpagl prepare`"):
        IndexRequest(data="ucm", bands="4,3,2")


def test_the_json_of_a_hit_says_where_it_is(encoder: Any, folder: Path) -> None:
    from cmpagl_core.search.answers import document
    from cmpagl_core.search.query import Hit

    index = make(encoder, folder).index
    row = list(index.image_ids).index("a_20200102.tif#192,0")
    found = json.loads(json.dumps(document(Hit(1, index.image(row), 0.5, ()))))
    assert found == {
        "rank": 1,
        "image_id": "a_20200102.tif#192,0",
        "path": str(folder / "a_20200102.tif"),
        "score": 0.5,
        "captions": [],
        "window": [192, 0, 64, 64],
        "bounds": [401920.0, 4999360.0, 402560.0, 5000000.0],
        "crs": "EPSG:32633",
        "date": "2020-01-02",
    }


def test_pruned_and_merged_indexes_keep_places_and_reading(encoder: Any, folder: Path) -> None:
    from cmpagl_core.device import choose_device
    from cmpagl_core.search.manage import merge_indexes, prune_index
    from cmpagl_core.session import Session
    from cmpagl_core.workspace import Workspace

    session = Session(Workspace(folder.parent / "workspace"), Silent(), lambda: choose_device("cpu"))
    first = make(encoder, folder, reading=Reading("3,2,1")).index
    (folder / "b.tif").unlink()
    pruned = prune_index(session, first)
    assert (len(pruned.index), pruned.encoded, pruned.index.info.tiling) == (13, 0, "64px")
    assert pruned.index.image(0).scene == first.image(0).scene
    other = folder.parent / "other"
    write(other / "d.tif", ground(side=128, seed=5).astype(np.uint16), **TILED, **UTM)
    second = build_index(
        encoder, folder_source(other, Reading("3,2,1"), TILES), folder.parent / "second", Silent()
    ).index
    merged = merge_indexes(session, [pruned.index, second], "both").index
    assert len(merged) == 17
    assert merged.info.reading == Reading("3,2,1")
    row = list(merged.image_ids).index("d.tif#64,0")
    assert merged.image(row).bounds == second.image(list(second.image_ids).index("d.tif#64,0")).bounds
    assert merged.info.preprocessing == encoder.fingerprint.preprocessing
