"""Explanations of hits by the ITM head of the index's run, as overlays for the page."""

from __future__ import annotations

import base64
import threading
from typing import Any

from PIL import Image

from cmpagl_core.encoders.cmpagl import CmpaglEncoder
from cmpagl_core.errors import UsageError
from cmpagl_core.explain.doubts import doubts
from cmpagl_core.explain.overlay import overlay, png_bytes
from cmpagl_core.explain.relevance import explain_pixels
from cmpagl_core.imagery.images import to_pixel_values
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.serve.pictures import Pictures

_SHOWN_PX = 512
_ONE = threading.Lock()  # a forward and a backward pass take all cores


def explained(searcher: Searcher, pictures: Pictures, row: int, text: str) -> dict[str, Any]:
    """Match, cosine and relevance of a text for an image of the index, with an overlay for the text and each word.

    notes: why it may mean little.

    Raises UsageError for an encoder without an ITM head, or as `explain_pixels` does.
    """
    encoder = searcher.encoder
    if not isinstance(encoder, CmpaglEncoder):
        raise UsageError(f"{encoder.name} has no ITM head, which an explanation needs", hint="index with a run")
    pixels = pictures.pixels(row)
    with _ONE:
        loaded = encoder.loaded
        found = explain_pixels(loaded, to_pixel_values(pixels, loaded.recipe.data.image_size_px), text)
    pixels.thumbnail((_SHOWN_PX, _SHOWN_PX), Image.Resampling.LANCZOS)
    highest = max((float(word.relevance.max()) for word in found.words), default=0.0)
    return {
        "text": found.text,
        "cosine": found.cosine,
        "match_percent": 100 * found.match_probability,
        "overlay": _data(overlay(pixels, found.relevance)),
        "words": [
            {"word": word.word, "percent": 100 * word.share, "overlay": _data(overlay(pixels, word.relevance, highest))}
            for word in found.words
        ],
        "notes": doubts(encoder.run, found),
    }


def _data(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(png_bytes(image)).decode('ascii')}"
