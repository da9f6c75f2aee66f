"""Images small enough to stand inside a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from cmpagl_core.errors import DataError
from cmpagl_core.imagery.images import open_image

_JPEG_QUALITY = 82


@dataclass(frozen=True)
class Thumbnail:
    """A small image as a data URI; empty, with the problem, where there is none."""

    uri: str
    problem: Literal["", "missing", "broken"] = ""


def thumbnail(path: Path, size_px: int) -> Thumbnail:
    """An image of at most `size_px` on its longer side. Raises nothing: a page does not depend on it."""
    try:
        if not path.is_file():
            return Thumbnail("", "missing")
        image = open_image(path, at_least_px=2 * size_px)
    except (DataError, OSError):
        return Thumbnail("", "broken")
    image.thumbnail((size_px, size_px), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return Thumbnail(f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}")
