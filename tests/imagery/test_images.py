"""Images of every kind become RGB, and broken ones a sentence."""

from __future__ import annotations

import hashlib
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmpagl_core.datasets.loading import WHOLE, Draw, ImageFiles
from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.encoders.decode import Decoded, image_decoder
from cmpagl_core.errors import DataError
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import (
    IMAGE_MEAN,
    IMAGE_STD,
    decoded_px,
    open_image,
    read_pixel_values,
    to_pixel_values,
)
from cmpagl_core.imagery.listing import list_images
from cmpagl_core.imagery.stamps import opened_with_stamp

RED = (200, 30, 10)


def image(path: Path, mode: str = "RGB", size: tuple[int, int] = (12, 8)) -> Path:
    Image.new("RGB", size, RED).convert(mode).save(path)
    return path


def png_header_of(path: Path, width: int, height: int) -> Path:
    """A PNG whose header claims a size and whose data are a few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.png", "RGB"), ("a.jpg", "RGB"), ("a.tif", "RGB"), ("a.jpg", "CMYK"), ("a.png", "P"), ("a.webp", "RGB")],
)
def test_every_common_format_becomes_rgb(tmp_path: Path, name: str, mode: str) -> None:
    opened = open_image(image(tmp_path / name, mode))
    assert opened.mode == "RGB"
    assert opened.size == (12, 8)
    assert np.abs(np.asarray(opened).reshape(-1, 3).mean(axis=0) - RED).max() < 12


@pytest.mark.parametrize(("name", "mode"), [("a.png", "L"), ("a.png", "1"), ("a.tif", "L")])
def test_grey_has_three_equal_channels(tmp_path: Path, name: str, mode: str) -> None:
    pixels = np.asarray(open_image(image(tmp_path / name, mode)))
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize("largest", [4095, 65535])
def test_sixteen_bits_span_black_to_white(tmp_path: Path, largest: int) -> None:
    Image.fromarray(np.array([[0, largest // 2, largest]], dtype=np.uint16)).save(tmp_path / "a.tif")
    assert np.asarray(open_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 127, 255]


def test_float_images_with_nan_are_read(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, np.nan, 1.0]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert np.asarray(open_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_become_black(tmp_path: Path, mode: str) -> None:
    seen = Image.new("RGBA", (2, 1), (*RED, 0))
    seen.putpixel((1, 0), (255, 255, 255, 255))
    seen.convert(mode).save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path / "a.png"))[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_exif_orientation_turns_the_image_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (12, 8), RED).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (8, 12)


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    opened = open_image(image(tmp_path / "a.png", size=(1, 1)))
    assert to_pixel_values(opened, 32).shape == (3, 32, 32)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.6])
def test_a_truncated_image_is_broken(tmp_path: Path, name: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=rf"{name} is (a broken image|not an image)"):
        open_image(tmp_path / name)


@pytest.mark.parametrize(("width", "height"), [(20_000, 15_000), (9_600, 10_000), (2_000_000_000, 2)])
def test_a_bomb_is_refused_unopened(tmp_path: Path, width: int, height: int) -> None:
    with pytest.raises(DataError, match=r"a\.png (has [\d,]+ x [\d,]+ pixels|is too large|is a broken image)"):
        open_image(png_header_of(tmp_path / "a.png", width, height))


def test_the_bound_on_pixels_is_said_where_only_a_whole_can_be_decoded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 12 x 8 pixels, more than the 50 that can be decoded safely; save it as a"):
        open_image(image(tmp_path / "a.gif"), max_pixels=50)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 100, b"%PDF-1.4", b"<svg xmlns='x'/>", b"\xff\xd8\xff"])
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jpg is"):
        open_image(tmp_path / "a.jpg")


def test_bytes_flipped_anywhere_never_raise_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "a.png", "a.tif", "a.gif", "a.webp", "a.bmp"):
        content = image(tmp_path / name).read_bytes()
        for _ in range(40):
            spoiled = bytearray(content)
            for position in rng.integers(0, len(content), 3):
                spoiled[position] = rng.integers(0, 256)
            (tmp_path / name).write_bytes(spoiled)
            with suppress(DataError):
                assert open_image(tmp_path / name, max_pixels=1_000_000).mode == "RGB"


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image .*a\.png does not exist"):
        open_image(tmp_path / "a.png")


def test_pixel_values_are_imagenet_normalised() -> None:
    values = to_pixel_values(Image.new("RGB", (5, 9), (255, 0, 51)), 16)
    expected = [(v - m) / s for v, m, s in zip((1.0, 0.0, 0.2), IMAGE_MEAN, IMAGE_STD, strict=True)]
    assert values.dtype == torch.float32
    assert torch.allclose(values, torch.tensor(expected)[:, None, None].expand(3, 16, 16), atol=1e-5)


def test_images_are_listed_sorted_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "a/1.jpg", "3.tif", ".hidden.png", ".cache/4.png", "__MACOSX/5.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = list_images(tmp_path).whole()
    assert [str(path.relative_to(tmp_path)) for path in found] == ["3.tif", "a/1.jpg", "b/2.PNG"]


def test_a_missing_and_an_empty_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="there is no image in"):
        list_images(tmp_path)


def large_jpeg(path: Path) -> Path:
    """A JPEG that is decoded at a reduced size where it is about to be shrunk."""
    small = Image.fromarray(np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8))
    small.resize((1200, 1200), Image.Resampling.BICUBIC).save(path, quality=92)
    return path


def test_every_path_decodes_one_file_to_the_same_pixels(tmp_path: Path) -> None:
    path = large_jpeg(tmp_path / "large.jpg")
    expected = read_pixel_values(path, 32)
    assert not torch.equal(expected, to_pixel_values(open_image(path), 32))
    indexed = image_decoder(lambda image: to_pixel_values(image, 32), decoded_px(32))(ImageRef("large", path))
    assert isinstance(indexed, Decoded)
    assert torch.equal(indexed.pixel_values, expected)
    none = np.empty(0, dtype=np.int64)
    split = DataSplit("a", "train", ("a",), (path,), ("",), ("",), (), (), none)
    trained = ImageFiles(split, 32).gather([Draw(0, 0, 0, WHOLE)])
    assert torch.equal(trained[0], expected)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = image(tmp_path / "a.png")
    with opened_with_stamp(path) as (stream, stamp):
        assert hashlib.sha256(stream.read()).hexdigest() == stamp.sha256
    with pytest.raises(DataError, match=r"a\.png changed while it was being read"), opened_with_stamp(path):
        path.write_bytes(b"shorter")
