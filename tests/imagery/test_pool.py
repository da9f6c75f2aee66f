"""Scenes stay open from piece to piece, for as many threads as there are, and are let go of afterwards."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from cmpagl_core.errors import DataError
from cmpagl_core.imagery import images, scene_file, stamps
from cmpagl_core.imagery.image_ref import ImageRef, Window
from cmpagl_core.imagery.reader import ReadImage, read_image
from cmpagl_core.imagery.reading import DEFAULT
from cmpagl_core.imagery.room import DecodingRoom
from cmpagl_core.imagery.scene_file import SceneFile
from cmpagl_core.imagery.scene_pool import SCENES, ScenePool
from tests.imagery.making import ground, write

TILED = {"tiled": True, "blockxsize": 64, "blockysize": 64, "photometric": "RGB", "compress": "deflate"}


def tiles(path: Path, side: int = 256, size: int = 64) -> list[ImageRef]:
    edges = range(0, side, size)
    return [ImageRef(f"{left},{top}", path, Window(left, top, size, size)) for top in edges for left in edges]


@pytest.mark.parametrize("layout", [TILED, {"photometric": "RGB", "blockysize": 4}])
def test_many_threads_read_what_one_reads(tmp_path: Path, layout: dict[str, object]) -> None:
    path = write(tmp_path / "a.tif", ground(side=256).astype(np.uint16), **layout)
    with SceneFile(path) as file:
        rendering = file.rendering(DEFAULT)
        whole = np.asarray(file.read(Window(0, 0, 256, 256), rendering).pixels)
    with ThreadPoolExecutor(8) as pool:
        for ref, found in zip(tiles(path) * 4, pool.map(read_image, tiles(path) * 4), strict=True):
            assert isinstance(found, ReadImage)
            assert ref.window is not None
            left, top = ref.window.left, ref.window.top
            assert np.array_equal(np.asarray(found.pixels), whole[top : top + 64, left : left + 64])


@pytest.mark.parametrize("kind", ["P", "1", "L", "CMYK", "RGB", "jpeg", "four bits"])
def test_a_tile_is_what_the_whole_image_shows(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tif"
    colours = Image.fromarray(ground(side=256, high=255).astype(np.uint8).transpose(1, 2, 0))
    if kind == "four bits":
        write(path, np.asarray(colours.convert("L"))[None] // 16, nbits=4)
    elif kind == "jpeg":
        colours.save(path, compression="jpeg", quality=90)
    else:
        (colours.quantize(32) if kind == "P" else colours.convert(kind)).save(path)
    whole = np.asarray(images.open_image(path))  # by Pillow
    tile = read_image(ImageRef("a", path, Window(64, 32, 128, 128)))  # by GDAL
    assert isinstance(tile, ReadImage)
    assert np.abs(np.asarray(tile.pixels).astype(int) - whole[32:160, 64:192]).max() <= 1


@pytest.mark.parametrize("layout", [TILED, {"photometric": "RGB", "blockysize": 4}])
@pytest.mark.parametrize("size", [30, 48])
def test_pieces_smaller_than_blocks_are_those_of_the_whole_and_each_part_is_decoded_once(
    tmp_path: Path, layout: dict[str, object], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmpagl_core.imagery.chunks._TILED_SIDE", 128)
    monkeypatch.setattr("cmpagl_core.imagery.chunks._STRIP_ROWS", 40)
    planes = ground(side=256).astype(np.uint16)
    planes[:, :50, :70] = 0
    path = write(tmp_path / "a.tif", planes, nodata=0, **layout)
    with SceneFile(path) as file:
        rendering = file.rendering(DEFAULT)
        whole = np.asarray(file.read(Window(0, 0, 256, 256), rendering).pixels)
        decoded = []
        decode = file._chunks._decode
        monkeypatch.setattr(file._chunks, "_decode", lambda part, how: decoded.append(part) or decode(part, how))
        refs = tiles(path, 256 - size, size)
        with ThreadPoolExecutor(8) as pool:
            pieces = list(pool.map(lambda ref: file.read(ref.window, rendering), refs))
        assert len(set(decoded)) == len(decoded) > 1
        for ref, piece in zip(refs, pieces, strict=True):
            assert ref.window is not None
            seen = (slice(ref.window.top, ref.window.top + size), slice(ref.window.left, ref.window.left + size))
            assert np.array_equal(np.asarray(piece.pixels), whole[seen])
            assert piece.valid == pytest.approx((planes[:, seen[0], seen[1]] > 0).any(axis=0).mean())


def test_what_is_not_needed_any_more_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmpagl_core.imagery.chunks._TILED_SIDE", 64)
    monkeypatch.setattr("cmpagl_core.imagery.chunks._KEPT_BYTES", 4 * 64 * 64 * 3)
    path = write(tmp_path / "a.tif", ground(side=256, low=1).astype(np.uint16), **TILED)
    with SceneFile(path) as file:
        rendering = file.rendering(DEFAULT)
        for ref in tiles(path, 256, 32):
            assert ref.window is not None
            file.read(ref.window, rendering)
            assert len(file._chunks._known) <= 4


def test_threads_that_share_little_memory_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = DecodingRoom(1)  # one image at a time
    for module in (images, scene_file):
        monkeypatch.setattr(module, "DECODING", room)
    plain = tmp_path / "b.png"
    Image.fromarray(ground(side=256, high=255).astype(np.uint8).transpose(1, 2, 0)).save(plain)
    scene = write(tmp_path / "a.tif", ground(side=256).astype(np.uint16), **TILED)
    mixed = [ref for pair in zip(tiles(scene), tiles(plain), strict=True) for ref in pair] * 4

    def read(ref: ImageRef) -> object:
        with room.held():  # as whoever decodes for a model does
            return read_image(ref)

    pool = ThreadPoolExecutor(8)
    waiting = [pool.submit(read, ref) for ref in mixed]
    assert all(isinstance(one.result(timeout=30), ReadImage) for one in waiting)
    pool.shutdown()


def test_a_scene_is_hashed_and_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SCENES.close()
    path = write(tmp_path / "a.tif", ground(side=256).astype(np.uint16), **TILED)
    counted = {"hashed": 0, "opened": 0}
    hashing, opening = stamps.hashlib.file_digest, SceneFile.__init__

    def hashed(*arguments: object) -> object:
        counted["hashed"] += 1
        return hashing(*arguments)  # type: ignore[arg-type]

    def opened(self: SceneFile, path: Path) -> None:
        counted["opened"] += 1
        opening(self, path)

    monkeypatch.setattr("cmpagl_core.imagery.stamps.hashlib.file_digest", hashed)
    monkeypatch.setattr(SceneFile, "__init__", opened)
    assert all(isinstance(read_image(ref), ReadImage) for ref in tiles(path))
    assert counted == {"hashed": 1, "opened": 1}


def test_a_scene_that_changes_while_its_pieces_are_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ground(side=256).astype(np.uint16), **TILED)
    with SCENES.opened(path, DEFAULT) as scene:
        assert scene.stamp()
        write(path, ground(side=256, seed=1).astype(np.uint16), compress="lzw", photometric="RGB")
        with pytest.raises(DataError, match=r"a\.tif changed while it was being read"):
            scene.check_unchanged()
    assert isinstance(read_image(tiles(path)[0]), ReadImage)  # opened anew


def test_few_scenes_are_open_at_once(tmp_path: Path) -> None:
    pool = ScenePool(2)
    paths = [write(tmp_path / f"{name}.tif", ground(side=64).astype(np.uint16)) for name in "abcd"]
    for path in paths:
        with pool.opened(path, DEFAULT):
            pass
    assert len(pool._scenes) == 2
    pool.close()
    assert len(pool._scenes) == 0


@pytest.mark.parametrize(("name", "options"), [("a.png", {"compress_level": 1}), ("a.jpg", {"quality": 90})])
def test_images_of_over_a_hundred_megapixels_are_read_small(tmp_path: Path, name: str, options: dict[str, int]) -> None:
    side = 10_400
    small = ground(side=650, high=255).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(small).resize((side, side), Image.Resampling.NEAREST).save(tmp_path / name, **options)
    seen = images.open_image(tmp_path / name, at_least_px=448)
    assert min(seen.size) >= 448
    shown = np.asarray(seen.resize((65, 65), Image.Resampling.BOX)).astype(float)
    expected = np.asarray(Image.fromarray(small).resize((65, 65), Image.Resampling.BOX))
    assert np.abs(shown - expected).mean() < 8
    assert images.size_of_plain(tmp_path / name, DEFAULT) is None


def test_no_thread_is_left(tmp_path: Path) -> None:
    before = threading.active_count()
    path = write(tmp_path / "a.tif", ground(side=64).astype(np.uint16))
    with rasterio.open(path):
        pass
    images.open_image(path)
    assert threading.active_count() == before
