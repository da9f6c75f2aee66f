"""The maximum lies on the part of a scene that the text means, and the answers keep the scene's place."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from cmpagl_core.encoders.encoder import EncodedBatch, Features
from cmpagl_core.errors import UsageError
from cmpagl_core.files import FileStamp
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.reader import open_ref
from cmpagl_core.progress import Silent
from cmpagl_core.search.localize import localize, write_geotiff
from tests.conftest import Cmpagl
from tests.imagery.making import UTM, write


class Redness:
    """An encoder by which a text means the share of red in an image."""

    def encode_images(self, images: Sequence[ImageRef]) -> Generator[EncodedBatch, None, None]:
        for row, image in enumerate(images):
            red = np.asarray(open_ref(image).convert("RGB"), np.float32)[..., 0].mean() / 255
            yield EncodedBatch(np.array([[red, (1 - red**2) ** 0.5]], np.float32), [row], [FileStamp(0, 0, "")], [])

    def encode_texts(self, texts: Sequence[str]) -> Features:
        return np.array([[1.0, 0.0]] * len(texts), np.float32)


def scene(path: Path, left: int, top: int, side: int = 320) -> Path:
    """Noise, and a red square of 64 pixels."""
    planes = np.random.default_rng(left).integers(0, 90, (3, side, side)).astype(np.uint8)
    planes[0, top : top + 64, left : left + 64] = 250
    write(path, planes, photometric="RGB", **UTM)
    return path


@pytest.mark.parametrize(("left", "top"), [(0, 0), (256, 256), (130, 40), (60, 200)])
def test_the_maximum_lies_on_what_is_meant(tmp_path: Path, left: int, top: int) -> None:
    encoder: Any = Redness()
    found = localize(encoder, scene(tmp_path / "a.tif", left, top), "red", Silent(), (64, 96))
    column, row = found.peak
    assert left <= column < left + 64
    assert top <= row < top + 64
    window = found.boxes[0].image.window
    assert window is not None
    assert abs(window.left - left) <= 32
    assert abs(window.top - top) <= 32
    assert [hit.score for hit in found.boxes] == sorted((hit.score for hit in found.boxes), reverse=True)
    for place, one in enumerate(found.boxes):
        for other in found.boxes[:place]:
            a, b = one.image.window, other.image.window
            assert a is not None
            assert b is not None
            assert abs(a.left - b.left) >= 64 or abs(a.top - b.top) >= 64


def test_the_heat_keeps_the_scenes_place(tmp_path: Path) -> None:
    encoder: Any = Redness()
    path = scene(tmp_path / "a.tif", 130, 40)
    found = localize(encoder, path, "red", Silent(), (64,))
    write_geotiff(found, tmp_path / "heat.tif")
    with rasterio.open(path) as of_scene, rasterio.open(tmp_path / "heat.tif") as heat:
        assert heat.crs == of_scene.crs
        np.testing.assert_allclose(heat.bounds, of_scene.bounds)
        np.testing.assert_array_equal(heat.read(1), found.heat)


def test_a_small_image_is_searched_by_tiles_of_its_shorter_side(tmp_path: Path) -> None:
    encoder: Any = Redness()
    Image.new("RGB", (50, 40), (200, 10, 10)).save(tmp_path / "a.png")
    found = localize(encoder, tmp_path / "a.png", "red", Silent(), (64,))
    assert 1 <= len(found.boxes) <= 2
    with pytest.raises(UsageError, match="no tile size"):
        localize(encoder, tmp_path / "a.png", "red", Silent(), ())


def test_the_command_draws_and_writes(cmpagl: Cmpagl, tiny_run: Path, tmp_path: Path) -> None:
    path = scene(tmp_path / "a.tif", 130, 40)
    result = cmpagl(
        "localize", path, "a red square", "--run", tiny_run, "--tile", "64", "--boxes", "2",
        "--geotiff", "h.tif", "--geojson", "b.json", "--format", "json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert len(document["boxes"]) == 2
    assert set(document["peak"]) == {"column", "row"}
    with Image.open(tmp_path / "localize.png") as drawn:
        assert drawn.size == (320, 320)
    features = json.loads((tmp_path / "b.json").read_text())["features"]
    assert [feature["geometry"]["type"] for feature in features] == ["Polygon", "Polygon"]
    assert (tmp_path / "h.tif").is_file()
