"""Decodes images of any supported format to RGB and converts them to `pixel_values`."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from cmpagl_core import __version__
from cmpagl_core.errors import DataError
from cmpagl_core.imagery.image_ref import Window
from cmpagl_core.imagery.plain import PILLOW_FORMATS, PILLOW_ONLY, is_plain
from cmpagl_core.imagery.quiet import silence_decoders
from cmpagl_core.imagery.reading import DEFAULT, Reading
from cmpagl_core.imagery.room import DECODING
from cmpagl_core.imagery.stamps import cannot_read, open_file

if TYPE_CHECKING:
    from torch import Tensor

    from cmpagl_core.imagery.scene_file import SceneFile
    from cmpagl_core.imagery.scene_pool import PlainImage

IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, as timm's Swin and EfficientNet expect
IMAGE_STD = (0.229, 0.224, 0.225)
MAX_PIXELS = 100_000_000  # 300 MB as RGB
PLAIN_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif"})
IMAGE_SUFFIXES = PLAIN_SUFFIXES | {".tif", ".tiff", ".jp2", ".j2k", ".vrt", ".ntf", ".nitf"}

_DECODER_BYTES, _PIXEL_BYTES = 4, 16  # a pixel at most takes inside a decoder, and as it is and as RGB
_BAND_PIXELS = 1 << 20  # converted at once, where conversion takes more than its result

_TIFF_SUFFIXES, _ORIENTATION, _ON_ITS_SIDE = (".tif", ".tiff"), 0x0112, (5, 6, 7, 8)
# What Pillow's decoders raise on broken files; warnings too, where a caller has turned them into errors.
_UNDECODABLE = (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
_UNDECODABLE_TOO = (NotImplementedError, struct.error, zlib.error, Warning)

silence_decoders()


def reader_version() -> str:
    """The versions of the decoders; another version may read other files."""
    return f"cmpagl {__version__}, Pillow {PIL.__version__}, rasterio {version('rasterio')}"


def open_image(
    path: Path, max_pixels: int = MAX_PIXELS, at_least_px: int | None = None, reading: Reading = DEFAULT
) -> Image.Image:
    """Decode a complete image to 8-bit RGB, rotated by its EXIF orientation.

    at_least_px: a large image may be decoded at 1/2, 1/3 and so on of its size (a JPEG at 1/8 at least), as long as
    both sides keep this many pixels, which is much faster before shrinking it. None: at full size, or as large as
    `max_pixels` allows. reading: bands and stretch, for other than plain 8-bit images.

    Transparent pixels and those without data become black. Raises DataError for a missing, broken or truncated file.
    """
    with open_file(path) as stream:
        return decode_image(stream, path, max_pixels, at_least_px, reading)


def decode_image(
    stream: BinaryIO,
    path: Path,
    max_pixels: int = MAX_PIXELS,
    at_least_px: int | None = None,
    reading: Reading = DEFAULT,
) -> Image.Image:
    """As `open_image`, for a file that is already open; `path` is for messages."""
    plain = _decode_plain(stream, path, max_pixels, at_least_px, reading)
    if plain is not None:
        return plain
    from cmpagl_core.imagery.scene_file import SceneFile  # GDAL, which plain images do without

    with SceneFile(path) as file:
        whole = Window(0, 0, file.width, file.height)
        return file.read(whole, file.rendering(reading), at_least_px).pixels


def checked_size(path: Path, reading: Reading = DEFAULT) -> tuple[int, int]:
    """Width and height of an image that was decoded whole, to see that it can be. Raises DataError as `open_image`."""
    with open_file(path) as stream:
        plain = _decode_plain(stream, path, MAX_PIXELS, None, reading)
    if plain is not None:
        return plain.size
    from cmpagl_core.imagery.scene_file import SceneFile

    with SceneFile(path) as file:
        file.read(Window(0, 0, file.width, file.height), file.rendering(reading))
        return file.width, file.height


def open_source(path: Path, reading: Reading) -> SceneFile | PlainImage:
    """A file of which pieces are to be read: tiled ones by GDAL, plain images whole. Raises DataError."""
    from cmpagl_core.imagery.scene_file import SceneFile
    from cmpagl_core.imagery.scene_pool import PlainImage

    if path.suffix.lower() in _TIFF_SUFFIXES and not _is_turned(path):
        return SceneFile(path)
    with open_file(path) as stream:
        plain = _decode_plain(stream, path, MAX_PIXELS, None, reading)
    return SceneFile(path) if plain is None else PlainImage(path, plain)


def size_of_plain(path: Path, reading: Reading) -> tuple[int, int] | None:
    """Width and height of a plain image that Pillow decodes whole, upright; None for a file that is GDAL's.

    Raises DataError for one that cannot be read.
    """
    if path.suffix.lower() in _TIFF_SUFFIXES and not _is_turned(path):
        return None
    try:
        with open_file(path) as stream, Image.open(stream, formats=PILLOW_FORMATS) as image:
            width, height = image.size
            if not is_plain(image, stream, reading):
                return None
            if width * height > MAX_PIXELS and image.format not in PILLOW_ONLY:
                return None
            return (height, width) if image.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE else (width, height)
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    except (*_UNDECODABLE, *_UNDECODABLE_TOO) as error:
        raise _undecodable(path, error) from error


def _decode_plain(
    stream: BinaryIO, path: Path, max_pixels: int, at_least_px: int | None, reading: Reading
) -> Image.Image | None:
    """A plain image, Pillow's, decoded; None for a file that is GDAL's."""
    try:
        with DECODING.held(), Image.open(stream, formats=PILLOW_FORMATS) as image:
            width, height = image.size
            if not is_plain(image, stream, reading):
                return None
            if width * height <= max_pixels:
                if at_least_px is not None:
                    image.draft(None, (at_least_px, at_least_px))
                DECODING.take(_DECODER_BYTES * width * height + _PIXEL_BYTES * image.width * image.height)
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return _to_rgb(image)
            if image.format not in PILLOW_ONLY:
                return None
    except MemoryError as error:
        raise DataError(f"there is not enough memory to decode {path}", hint="crop or shrink it first") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None  # GDAL looks at it by parts, if it is an image
    except (*_UNDECODABLE, *_UNDECODABLE_TOO) as error:
        raise _undecodable(path, error) from error
    raise DataError(
        f"{path} has {width:,} x {height:,} pixels, more than the {max_pixels:,} that can be decoded safely",
        hint="save it as a TIFF, or crop or shrink it first",
    )


def _undecodable(path: Path, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the decoder's
        return cannot_read(path, error)
    return DataError(f"{path} is a broken image ({_reason(error)})")


def _is_turned(path: Path) -> bool:
    """Whether EXIF says that a TIFF is to be turned, which GDAL does not do."""
    try:
        with open_file(path) as stream, Image.open(stream, formats=("TIFF",)) as image:
            return bool(image.getexif().get(_ORIENTATION, 1) != 1)
    except (*_UNDECODABLE, *_UNDECODABLE_TOO, Image.DecompressionBombError):
        return False


def read_pixel_values(path: Path, image_size_px: int, reading: Reading = DEFAULT) -> Tensor:
    """A complete image file as normalised float32 [3, S, S]. Raises DataError as `open_image` does."""
    with DECODING.held():
        opened = open_image(path, at_least_px=decoded_px(image_size_px), reading=reading)
        return to_pixel_values(opened, image_size_px)


def decoded_px(image_size_px: int, share: float = 1.0) -> int:
    """Pixels per side to decode if a share of it is resized to `image_size_px`: twice as many (ours).

    All decoding for models uses this, so that a file gives the same input everywhere.
    """
    return math.ceil(2 * image_size_px / share)


def to_pixel_values(image: Image.Image, image_size_px: int) -> Tensor:
    """One RGB image as normalised float32 [3, S, S]: resized bicubically to a square, as is usual in the field."""
    return normalised(to_square(image, image_size_px))


def pixel_array(image: Image.Image, image_size_px: int) -> NDArray[np.float32]:
    """The same as an array, without importing torch."""
    return _normalised(to_square(image, image_size_px))


def to_square(image: Image.Image, image_size_px: int) -> NDArray[np.uint8]:
    """One RGB image resized to a square, uint8 [S, S, 3], the input of `normalised`."""
    return np.asarray(image.resize((image_size_px, image_size_px), Image.Resampling.BICUBIC))


def normalised(square: NDArray[np.uint8]) -> Tensor:
    """uint8 [S, S, 3] as normalised float32 [3, S, S]."""
    import torch  # here, not above: `prepare` only checks images, and torch takes over a second to import

    return torch.from_numpy(_normalised(square))


def _normalised(square: NDArray[np.uint8]) -> NDArray[np.float32]:
    pixels = square.astype(np.float32) / 255
    values = (pixels - np.array(IMAGE_MEAN, dtype=np.float32)) / np.array(IMAGE_STD, dtype=np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image.copy()  # in memory, so that the file can be closed
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _in_bands(image, _on_black)
    return image.convert("RGB")


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert in strips from top to bottom, since converting takes more memory than its result."""
    result = Image.new("RGB", image.size)
    height = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, height):
        strip = image.crop((0, top, image.width, min(top + height, image.height)))
        result.paste(convert(strip), (0, top))
    return result


def _on_black(image: Image.Image) -> Image.Image:
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, (0, 0, 0, 255)), seen).convert("RGB")


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return " ".join(text.split())[:200]
