"""Images small enough to stand inside a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from cmpagl_core.errors import DataError
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.reader import open_ref

_JPEG_QUALITY = 82


@dataclass(frozen=True)
class Thumbnail:
    """A small image as a data URI; empty, with the problem, where there is none."""

    uri: str
    problem: Literal["", "missing", "broken"] = ""


def thumbnail(image: ImageRef, size_px: int) -> Thumbnail:
    """An image of at most `size_px` on its longer side. Raises nothing: a page does not depend on it."""
    try:
        if not image.path.is_file():
            return Thumbnail("", "missing")
        pixels = open_ref(image, at_least_px=2 * size_px)
    except (DataError, OSError):
        return Thumbnail("", "broken")
    pixels.thumbnail((size_px, size_px), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    pixels.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return Thumbnail(f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}")
