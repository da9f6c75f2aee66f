"""From an ImageRef to its pixels, with the stamp of the file that they were read from."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from cmpagl_core.errors import DataError
from cmpagl_core.files import FileStamp
from cmpagl_core.imagery.image_ref import ImageRef, Window
from cmpagl_core.imagery.images import decode_image
from cmpagl_core.imagery.stamps import Broken, opened_with_stamp


@dataclass(frozen=True)
class ReadImage:
    """The pixels of an image, RGB, and the stamp of its file."""

    pixels: Image.Image
    stamp: FileStamp


def read_image(ref: ImageRef, at_least_px: int | None = None) -> ReadImage | Broken:
    """Read an image, or say why it cannot be read. at_least_px: as in `open_image`; a piece is always cut whole."""
    try:
        with opened_with_stamp(ref.path) as (stream, stamp):
            try:
                at_least_px = at_least_px if ref.window is None else None
                pixels = decode_image(stream, ref.path, at_least_px=at_least_px)
                return ReadImage(pixels if ref.window is None else _cut(pixels, ref, ref.window), stamp)
            except DataError as error:
                lasting = not isinstance(error.__cause__, MemoryError)
                return Broken(ref, str(error), stamp if lasting else None)
    except DataError as error:
        return Broken(ref, str(error))


def _cut(pixels: Image.Image, ref: ImageRef, window: Window) -> Image.Image:
    box = (window.left, window.top, window.left + window.width, window.top + window.height)
    if not (0 <= box[0] < box[2] <= pixels.width and 0 <= box[1] < box[3] <= pixels.height):
        raise DataError(f"{ref.path} has {pixels.width} x {pixels.height} pixels, and {window} is not inside")
    return pixels.crop(box)
