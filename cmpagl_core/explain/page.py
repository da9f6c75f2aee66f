"""An explanation as one self-contained HTML page."""

from __future__ import annotations

import base64
from pathlib import Path

from PIL import Image

from cmpagl_core.explain.overlay import overlay, png_bytes
from cmpagl_core.explain.relevance import Explanation
from cmpagl_core.files import write_text
from cmpagl_core.html_page import render_page

_PAGE_PX = 384


def write_page(path: Path, image: Image.Image, name: str, explanation: Explanation) -> None:
    """Write the page atomically. name: the image's name in the title."""
    write_text(path, page(image, name, explanation))


def page(image: Image.Image, name: str, explanation: Explanation) -> str:
    """The page as text."""
    small = image.convert("RGB")
    small.thumbnail((_PAGE_PX, _PAGE_PX), Image.Resampling.LANCZOS)
    highest = max((float(word.relevance.max()) for word in explanation.words), default=0.0)
    words = [
        {"word": word.word, "percent": 100 * word.share, "image": _data(overlay(small, word.relevance, highest))}
        for word in explanation.words
    ]
    return render_page(
        "cmpagl_core.report",
        "explain.html",
        name=name,
        text=explanation.text,
        cosine=explanation.cosine,
        match_percent=100 * explanation.match_probability,
        image=_data(small),
        whole=_data(overlay(small, explanation.relevance)),
        words=words,
        stages=[
            {"stage": stage.stage, "percent": 100 * stage.share, "local": stage.local, "whole": stage.global_window}
            for stage in explanation.stages
        ],
    )


def _data(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(png_bytes(image)).decode('ascii')}"
