"""What sensors deliver becomes RGB that a model can read: depths, bands, "no data", outliers; or one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp

from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.imagery.image_ref import Window
from cmpagl_core.imagery.images import open_image
from cmpagl_core.imagery.reading import Reading
from cmpagl_core.imagery.scene_file import SceneFile
from tests.imagery.making import ground, write

RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


def seen(path: Path, bands: str = "auto", stretch: str = "auto") -> NDArray[np.uint8]:
    return np.asarray(open_image(path, reading=Reading(bands, stretch)))


def test_twelve_bits_in_sixteen_are_neither_black_nor_white(tmp_path: Path) -> None:
    pixels = seen(write(tmp_path / "a.tif", ground().astype(np.uint16), photometric="RGB"))
    assert 60 < pixels.mean() < 200  # was 5.6


def test_one_outlier_does_not_darken_the_rest(tmp_path: Path) -> None:
    planes = ground(bands=1, low=700, high=2_400).astype(np.uint16)
    without = seen(write(tmp_path / "a.tif", planes)).mean()
    planes[0, 3, 3] = 65_535
    assert abs(seen(write(tmp_path / "b.tif", planes)).mean() - without) < 2  # fell from 166 to 6
    assert 60 < without < 200


def test_decibels_that_are_all_negative_are_seen(tmp_path: Path) -> None:
    path = write(tmp_path / "sar.tif", ground(bands=1, low=-25, high=-2).astype(np.float32))
    assert 60 < seen(path).mean() < 200  # was black
    assert np.array_equal(seen(path, stretch="db"), seen(path))  # they are decibels already
    fixed = seen(path, stretch="db:-25,0").astype(float)
    with rasterio.open(path) as file:
        assert np.abs(fixed[..., 0] - (file.read(1) + 25) / 25 * 255).max() <= 0.51


def test_backscatter_is_turned_into_decibels(tmp_path: Path) -> None:
    decibels = ground(bands=1, low=-25, high=-2)
    path = write(tmp_path / "sar.tif", (10 ** (decibels / 10)).astype(np.float32))
    expected = seen(write(tmp_path / "db.tif", decibels.astype(np.float32)))
    assert np.abs(seen(path, stretch="db").astype(int) - expected).max() <= 1
    assert seen(path).mean() < seen(path, stretch="db").mean()


def test_near_infrared_that_is_called_alpha_blends_nothing(tmp_path: Path) -> None:
    planes = np.full((4, 64, 64), 130, dtype=np.uint8)
    planes[3] = np.random.default_rng(0).integers(10, 60, (64, 64))
    path = write(tmp_path / "a.tif", planes, colours=(*RGB, ColorInterp.alpha))
    with Image.open(path) as file:
        assert file.tag_v2[338] == (2,)  # ExtraSamples: unassociated alpha
    assert (seen(path) == 130).all()  # became 10


def test_an_alpha_that_is_a_mask_masks(tmp_path: Path) -> None:
    planes = ground(bands=4, side=64).astype(np.uint16)
    planes[3], planes[3, :, :16] = 65_535, 0
    planes[:3, :, :16] = 60_000  # what is masked has no say in the stretch
    pixels = seen(write(tmp_path / "a.tif", planes, colours=(*RGB, ColorInterp.alpha)))
    assert (pixels[:, :16] == 0).all()
    assert 60 < pixels[:, 16:].mean() < 200


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_three_bands_without_colours_are_red_green_and_blue(tmp_path: Path, dtype: type) -> None:
    planes = ground(high=255).round().astype(dtype)
    pixels = seen(write(tmp_path / "a.tif", planes, photometric="MINISBLACK"), stretch="none")
    assert np.array_equal(pixels, planes.transpose(1, 2, 0).astype(np.uint8))


@pytest.mark.parametrize("dtype", [np.int16, np.uint32, np.int32, np.float32, np.float64])
def test_every_type_of_number_is_stretched(tmp_path: Path, dtype: type) -> None:
    low = -500 if np.dtype(dtype).kind != "u" else 0
    planes = ground(low=low, high=3_000)
    pixels = seen(write(tmp_path / "a.tif", planes.astype(dtype), photometric="MINISBLACK"))
    for band in range(3):
        whole = planes[band].astype(dtype).astype(float)
        low, high = np.percentile(whole, [2, 98])
        expected = ((whole - low) / (high - low) * 255).clip(0, 255)
        assert np.abs(pixels[..., band] - expected).max() < 4


def test_thirteen_bands_ask_which_and_take_an_answer(tmp_path: Path) -> None:
    planes = ground(bands=13).astype(np.uint16)
    path = write(tmp_path / "s2.tif", planes)
    with pytest.raises(
        DataError, match=r"has 13 bands of uint16 .*it is unknown which are red.*--bands 4,3,2 or a pre"
    ):
        seen(path)
    expected = seen(write(tmp_path / "rgb.tif", planes[[3, 2, 1]], photometric="RGB"))
    assert np.array_equal(seen(path, "4,3,2"), expected)
    assert np.array_equal(seen(path, "sentinel-2"), expected)
    assert np.array_equal(seen(path, "4")[..., 0], expected[..., 0])
    with pytest.raises(DataError, match=r"so there is no band 14"):
        seen(path, "14,1,1")
    with pytest.raises(DataError, match=r"images of naip have 3, 4"):
        seen(path, "naip")


@pytest.mark.parametrize(
    "names",
    [
        ("Blue", "Green", "Red", "Red Edge", "NIR"),
        ("coastal_blue", "blue", "green_i", "green", "yellow", "red", "rededge", "nir"),
        ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A"),
        ("SR_B2", "SR_B3", "SR_B4", "SR_B5", "ST_B10"),
    ],
)
def test_bands_are_found_by_their_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    planes = ground(bands=len(names)).astype(np.uint16)
    blue = next(row for row, name in enumerate(names) if name in ("Blue", "blue", "B02", "SR_B2"))
    green = next(row for row, name in enumerate(names) if name in ("Green", "green", "B03", "SR_B3"))
    red = next(row for row, name in enumerate(names) if name in ("Red", "red", "B04", "SR_B4"))
    path = write(tmp_path / "a.tif", planes, names=names, photometric="MINISBLACK")
    assert np.array_equal(seen(path), seen(path, f"{red + 1},{green + 1},{blue + 1}"))


def test_names_that_only_count_say_nothing(tmp_path: Path) -> None:
    names = [f"Band {number}" for number in range(1, 13)]
    path = write(tmp_path / "a.tif", ground(bands=12).astype(np.uint16), names=names)
    with pytest.raises(DataError, match=r"it is unknown which are red"):
        seen(path)


def test_colours_come_before_the_order_of_bands(tmp_path: Path) -> None:
    planes = ground(bands=4).astype(np.uint16)
    colours = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
    path = write(tmp_path / "a.tif", planes, photometric="MINISBLACK", colours=colours)
    assert np.array_equal(seen(path), seen(path, "3,2,1"))


def test_pages_of_one_band_ask_which_is_which(tmp_path: Path) -> None:
    planes = ground().astype(np.uint16)
    pages = [Image.fromarray(plane) for plane in planes]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"has 3 pages of one band of uint16 .* pass --bands 3,2,1 or a preset"):
        seen(tmp_path / "pages.tif")  # took page 1 silently
    expected = seen(write(tmp_path / "rgb.tif", planes[[2, 1, 0]], photometric="RGB"))
    assert np.array_equal(seen(tmp_path / "pages.tif", "3,2,1"), expected)
    assert np.array_equal(seen(tmp_path / "pages.tif", "1")[..., 0], expected[..., 2])
    Image.fromarray(planes[0]).save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    with pytest.raises(DataError, match=r"2 pages of different kinds .*save the one that is meant"):
        seen(tmp_path / "a.tif", "1")


@pytest.mark.parametrize("said", [True, False])
def test_no_data_does_not_darken_the_rest(tmp_path: Path, said: bool) -> None:
    planes = ground(bands=1).astype(np.float32)
    expected = seen(write(tmp_path / "whole.tif", planes))
    planes[0, :8], planes[0, 8:16, :8] = np.float32(3.4e38), np.nan
    nodata = {"nodata": float(np.float32(3.4e38))} if said else {}
    pixels = seen(write(tmp_path / "a.tif", planes, **nodata))
    assert (pixels[:8] == 0).all()
    assert (pixels[8:16, :8] == 0).all()
    assert abs(pixels[16:].mean() - expected[16:].mean()) < 2
    small = np.asarray(open_image(tmp_path / "a.tif", at_least_px=50))
    assert small.shape == (50, 50, 3)
    assert abs(small[4:].mean() - expected[16:].mean()) < 4


def test_eight_bits_stay_as_they_are_but_for_no_data(tmp_path: Path) -> None:
    planes = ground(high=255).astype(np.uint8)
    planes[:, :8] = 7
    path = write(tmp_path / "a.tif", planes, photometric="RGB", nodata=7)
    pixels = seen(path)
    assert (pixels[:8] == 0).all()
    assert np.array_equal(pixels[8:], planes.transpose(1, 2, 0)[8:])


def test_zeros_beside_a_scene_have_no_say_in_its_stretch(tmp_path: Path) -> None:
    planes = ground(low=400).astype(np.uint16)
    expected = seen(write(tmp_path / "whole.tif", planes, photometric="RGB"))
    planes[:, :100] = 0
    pixels = seen(write(tmp_path / "a.tif", planes, photometric="RGB"))
    assert (pixels[:100] == 0).all()
    assert np.abs(pixels[100:].astype(int) - expected[100:]).mean() < 3


def test_a_mask_of_the_file_masks(tmp_path: Path) -> None:
    planes = ground(side=64).astype(np.uint16)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = write(tmp_path / "a.tif", planes, photometric="RGB")
        with rasterio.open(path, "r+") as file:
            mask = np.full((64, 64), 255, dtype=np.uint8)
            mask[:, :32] = 0
            file.write_mask(mask)
    pixels = seen(path)
    assert (pixels[:, :32] == 0).all()
    assert pixels[:, 32:].mean() > 60


def test_sixteen_bits_of_a_png_are_stretched(tmp_path: Path) -> None:
    planes = ground().astype(np.uint16)
    path = write(tmp_path / "a.png", planes, driver="PNG")
    assert np.array_equal(seen(path), seen(write(tmp_path / "a.tif", planes, photometric="RGB")))


def test_a_fixed_range_is_the_same_for_every_file(tmp_path: Path) -> None:
    planes = ground().astype(np.uint16)
    pixels = seen(write(tmp_path / "a.tif", planes, photometric="RGB"), stretch="range:0,3000")
    expected = (planes.transpose(1, 2, 0) / 3_000 * 255).clip(0, 255)
    assert np.abs(pixels - expected).max() <= 0.51


def test_a_file_of_one_value_is_grey(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.full((1, 9, 9), 500, dtype=np.uint16))
    assert (seen(path) == 127).all()


@pytest.mark.parametrize("driver", ["COG", "JP2OpenJPEG", "ENVI", "NITF", "GTiff"])
def test_each_format_gives_the_same_pixels(tmp_path: Path, driver: str) -> None:
    planes = ground().astype(np.uint16)
    expected = seen(write(tmp_path / "a.tif", planes, photometric="RGB"), "1,2,3")
    options = {"JP2OpenJPEG": {"QUALITY": "100", "REVERSIBLE": "YES"}, "GTiff": {"BIGTIFF": "YES"}}.get(driver, {})
    suffix = {"JP2OpenJPEG": ".jp2", "ENVI": ".img", "NITF": ".ntf"}.get(driver, ".tiff")
    path = write(tmp_path / f"b{suffix}", planes, driver=driver, **options)
    assert np.array_equal(seen(path, "1,2,3"), expected)


def test_complex_values_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "slc.tif", ground(bands=1).astype(np.complex64))
    with pytest.raises(
        DataError, match=r"has complex values, which cannot be shown as an image; convert them to amplitude"
    ):
        seen(path)


@pytest.mark.parametrize(
    ("bands", "stretch", "said"),
    [
        ("4,3", "auto", "--bands '4,3' is not a choice of bands"),
        ("0,1,2", "auto", "is not a choice of bands"),
        ("spot-7", "auto", "or one of sentinel-2, landsat-8"),
        ("auto", "2-98", "--stretch '2-98' is unknown"),
        ("auto", "percentile:98,2", "invalid limits"),
        ("auto", "percentile:2,101", "invalid limits"),
    ],
)
def test_what_cannot_be_meant_is_refused(bands: str, stretch: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Reading(bands, stretch)


def test_every_piece_is_stretched_as_its_scene(tmp_path: Path) -> None:
    planes = ground(side=600).astype(np.uint16)
    planes[:, :300] = planes[:, :300] // 4
    path = write(tmp_path / "a.tif", planes, photometric="RGB", tiled=True, blockxsize=128, blockysize=128)
    with SceneFile(path) as file:
        rendering = file.rendering(Reading())
        whole = file.read(Window(0, 0, 600, 600), rendering)
        piece = file.read(Window(70, 130, 256, 200), rendering)
        small = file.read(Window(0, 0, 600, 600), rendering, at_least_px=150)
        with pytest.raises(DataError, match=r"is not inside"):
            file.read(Window(500, 0, 101, 10), rendering)
    assert np.array_equal(np.asarray(piece.pixels), np.asarray(whole.pixels)[130:330, 70:326])
    assert small.pixels.size == (150, 150)
    mean = np.asarray(whole.pixels).reshape(150, 4, 150, 4, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(small.pixels) - mean).mean() < 2


@pytest.mark.parametrize("layout", [{"tiled": True, "blockxsize": 64, "blockysize": 64}, {"blockysize": 16}])
def test_a_sample_of_some_blocks_stretches_as_all_of_them(
    tmp_path: Path, layout: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    planes = ground(side=1_000, high=1_200).astype(np.uint16) + np.arange(1_000, dtype=np.uint16)
    path = write(tmp_path / "a.tif", planes, photometric="RGB", **layout)
    with SceneFile(path) as file:
        exact = file.rendering(Reading())
        monkeypatch.setattr("cmpagl_core.imagery.scene_file._DECODED_FOR_A_SAMPLE", 10_000)
        sampled = file.rendering(Reading())
    assert sampled != exact
    for found, expected in zip((*sampled.lows, *sampled.highs), (*exact.lows, *exact.highs), strict=True):
        assert abs(found - expected) < 80  # of 2,200


MEASURED = """
import resource, sys
from pathlib import Path
from cmpagl_core.imagery.images import open_image, decoded_px
from cmpagl_core.imagery.scene_file import SceneFile
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = open_image(Path(sys.argv[1]), at_least_px=decoded_px(224) if sys.argv[2] == "small" else None).size
print(*size, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def peak_mb(path: Path, how: str) -> tuple[int, int, int]:
    """Width and height as it is read, and by how many MB the peak grew."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", MEASURED, str(path), how]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    width, height, grown = map(int, done.stdout.split())
    return width, height, grown


@pytest.mark.skipif(sys.platform != "linux", reason="getrusage counts otherwise elsewhere")
def test_a_sentinel_2_tile_is_read_in_bounded_memory(tmp_path: Path) -> None:
    side = 10_980
    options = {"tiled": True, "compress": "deflate", "sparse_ok": True, "photometric": "RGB"}
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", **options
    ) as file:
        file.write(np.full((3, 512, 512), 90, dtype=np.uint8), window=rasterio.windows.Window(0, 0, 512, 512))
    width, height, grown = peak_mb(tmp_path / "a.tif", "small")  # was refused
    assert min(width, height) >= 448
    assert grown < 300


@pytest.mark.skipif(sys.platform != "linux", reason="getrusage counts otherwise elsewhere")
@pytest.mark.parametrize("how", ["small", "whole"])
def test_a_hundred_megapixels_of_sixteen_bits_take_less_than_a_gigabyte(tmp_path: Path, how: str) -> None:
    strip = np.random.default_rng(0).integers(0, 3_000, (1, 100, 10_000), dtype=np.uint16)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=10_000, height=10_000, count=1, dtype="uint16"
    ) as file:
        for top in range(0, 10_000, 100):
            file.write(strip, window=rasterio.windows.Window(0, top, 10_000, 100))
    width, height, grown = peak_mb(tmp_path / "a.tif", how)
    assert (width, height) == ((10_000, 10_000) if how == "whole" else (455, 455))
    assert grown < 1_024  # took 2.7 GB
