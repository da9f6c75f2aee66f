"""Images in any common format, decoded whole to RGB, and turned into `pixel_values`."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cmpagl_core import __version__
from cmpagl_core.errors import DataError
from cmpagl_core.imagery.quiet import silence_decoders
from cmpagl_core.imagery.room import DECODING
from cmpagl_core.imagery.stamps import open_file

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, as timm's Swin and EfficientNet expect
IMAGE_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 100_000_000  # 300 MB as RGB
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2"})

_DECODER_BYTES, _PIXEL_BYTES = 4, 16  # a pixel at most takes inside a decoder, and as it is and as RGB
_BAND_PIXELS = 1 << 20  # converted at once, where conversion takes more than its result

_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000")
# What Pillow's decoders raise on broken files; warnings too, where a caller has turned them into errors.
_UNDECODABLE = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
_UNDECODABLE_TOO = (NotImplementedError, struct.error, zlib.error, Warning)

silence_decoders()


def reader_version() -> str:
    """What decodes images, in words: what one version cannot read, another may."""
    return f"cmpagl {__version__}, Pillow {PIL.__version__}"


def open_image(path: Path, max_pixels: int = MAX_PIXELS, at_least_px: int | None = None) -> Image.Image:
    """Decode an image whole: RGB, 8 bits, upright by its EXIF orientation.

    at_least_px: a large JPEG may be decoded at a half, a quarter or an eighth of its size, as long as both sides keep
    so many pixels; much faster where it is about to be shrunk. None: always whole.

    Deeper pixels are scaled so that the image's largest value is white; transparent ones become black, the
    field's "no data". Raises DataError for a missing, broken or truncated file, or one of over `max_pixels`.
    """
    with open_file(path) as stream:
        return decode_image(stream, path, max_pixels, at_least_px)


def decode_image(
    stream: BinaryIO, path: Path, max_pixels: int = MAX_PIXELS, at_least_px: int | None = None
) -> Image.Image:
    """As `open_image`, of a file that is open already; `path` is for what is said."""
    try:
        with DECODING.held(), Image.open(stream, formats=_FORMATS) as image:
            width, height = image.size
            if width * height <= max_pixels:
                if at_least_px is not None:
                    image.draft(None, (at_least_px, at_least_px))
                DECODING.take(_DECODER_BYTES * width * height + _PIXEL_BYTES * image.width * image.height)
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return _to_rgb(image)
    except MemoryError as error:
        raise DataError(f"there is not enough memory to decode {path}", hint="cut or shrink it first") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is not an image of a known format", hint=f"known are {', '.join(_FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} is too large to decode safely (over {max_pixels:,} pixels)") from error
    except (*_UNDECODABLE, *_UNDECODABLE_TOO) as error:
        raise DataError(f"{path} is a broken image ({_reason(error)})") from error
    raise DataError(
        f"{path} has {width:,} x {height:,} pixels, more than the {max_pixels:,} that are decoded safely",
        hint="cut or shrink it first",
    )


def read_pixel_values(path: Path, image_size_px: int) -> Tensor:
    """A whole image file as normalised float32 [3, S, S]. Raises DataError as `open_image` does."""
    with DECODING.held():
        return to_pixel_values(open_image(path, at_least_px=decoded_px(image_size_px)), image_size_px)


def decoded_px(image_size_px: int, share: float = 1.0) -> int:
    """How many pixels a side must keep where a share of it is resized to so many: twice as many (ours).

    Whoever decodes an image for a model asks for this, so that one file gives one input everywhere.
    """
    return math.ceil(2 * image_size_px / share)


def to_pixel_values(image: Image.Image, image_size_px: int) -> Tensor:
    """One RGB image as normalised float32 [3, S, S]: bicubic, squashed to a square as the field does."""
    import torch  # here, not above: `prepare` only checks images, and torch takes over a second to import

    square = image.resize((image_size_px, image_size_px), Image.Resampling.BICUBIC)
    pixels = np.asarray(square, dtype=np.float32) / 255  # [S, S, 3]
    normalised = (pixels - np.array(IMAGE_MEAN, dtype=np.float32)) / np.array(IMAGE_STD, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image.copy()  # in memory, so that the file can be closed
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        largest = max(float(_finite_values(band).max()) for _, band in _bands(image))
        scale = 255 / largest if largest > 255 or 0 < largest <= 1 else 1.0  # 0 to 255 and 0 to 1 are usual ranges too
        return _in_bands(image, lambda band: _scaled(band, scale))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _in_bands(image, _on_black)
    return image.convert("RGB")


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    result = Image.new("RGB", image.size)
    for top, band in _bands(image):
        result.paste(convert(band), (0, top))
    return result


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """An image as strips from top to bottom, each with where it begins."""
    height = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(top + height, image.height)))


def _finite_values(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    return Image.fromarray(np.clip(_finite_values(image) * scale, 0, 255).round().astype(np.uint8)).convert("RGB")


def _on_black(image: Image.Image) -> Image.Image:
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, (0, 0, 0, 255)), seen).convert("RGB")


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return " ".join(text.split())[:200]
