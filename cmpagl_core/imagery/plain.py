"""Decides which files Pillow reads: 8 bits, grey or colour, one page. GDAL reads all others."""

from __future__ import annotations

from typing import Any, BinaryIO

from PIL import Image

from cmpagl_core.imagery.reading import DEFAULT, Reading

PILLOW_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")
PILLOW_ONLY = ("BMP", "WEBP", "GIF")  # decoded whole by everyone, however large they are

_REDUCED = 1
_NEW_SUBFILE_TYPE, _BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA_SAMPLES = 254, 258, 262, 277, 338
_SAMPLE_FORMAT, _GDAL_NODATA, _UNSIGNED, _CMYK = 339, 42113, 1, 5
_COLOURS = (2, 6, 8)  # RGB, YCbCr, CIELab


def is_plain(image: Image.Image, stream: BinaryIO, reading: Reading) -> bool:
    """Whether an image that Pillow has just opened, and not decoded, needs no bands to be chosen and no stretch.

    An 8-bit image is taken as it is, whatever was asked of bands; a TIFF is not.
    """
    if image.format == "PNG":
        return _png_bits(stream) <= 8
    if image.format == "TIFF":
        return reading == DEFAULT and _is_plain_tiff(image)
    return True


def _png_bits(stream: BinaryIO) -> int:
    place = stream.tell()
    stream.seek(24)  # in IHDR, which comes first
    bits = stream.read(1)
    stream.seek(place)
    return bits[0] if bits else 0


def _is_plain_tiff(image: Image.Image) -> bool:
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    samples, photometric = tags.get(_SAMPLES, 1), tags.get(_PHOTOMETRIC)
    fits = samples == 1 or (samples == 3 and photometric in _COLOURS) or (samples == 4 and photometric == _CMYK)
    plain = (
        fits
        and max(_all(tags.get(_BITS, 1))) <= 8
        and set(_all(tags.get(_SAMPLE_FORMAT, _UNSIGNED))) == {_UNSIGNED}
        and not tags.get(_EXTRA_SAMPLES)
        and _GDAL_NODATA not in tags
    )
    return plain and _has_one_page(image)


def _has_one_page(image: Image.Image) -> bool:
    """Whether what follows the first page are its overviews: no other page and no mask."""
    try:
        for number in range(1, getattr(image, "n_frames", 1)):
            image.seek(number)
            if image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) != _REDUCED:  # type: ignore[attr-defined]
                return False
    finally:
        image.seek(0)
    return True


def _all(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)
