"""Pages rendered from templates: everything escaped, no address outside the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cmpagl_core import __version__
from cmpagl_core.errors import DataError
from cmpagl_core.imagery.pictures import open_picture

_JPEG_QUALITY = 80
_THUMBNAIL_PX = 160


def render(template: str, **content: Any) -> str:
    """A page as text."""
    environment = Environment(
        loader=PackageLoader("cmpagl_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: f"{value:.2f}"
    page = environment.get_template(template).render(version=__version__, **content)
    return page.encode("utf-8", "replace").decode("utf-8")


def thumbnail(path: Path) -> str:
    """A picture as a small data URI; empty when it is gone or broken."""
    try:
        picture = open_picture(path)
    except (DataError, OSError):
        return ""
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
