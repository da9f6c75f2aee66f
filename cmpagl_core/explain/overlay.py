"""Relevance maps over an image, on one colour scale, with all words on one sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cmpagl_core.explain.relevance import Explanation, Relevance
from cmpagl_core.files import write_bytes

PANEL_PX = 256
_GAP_PX, _LABEL_PX, _COLUMNS = 12, 26, 4
_STRENGTH = 0.75  # opacity of the colour at the peak
# from zero to the peak: readable in grey and for most colour-blind people
_STOPS: tuple[tuple[float, tuple[int, int, int]], ...] = (
    (0.0, (20, 11, 52)),
    (0.35, (132, 32, 107)),
    (0.65, (229, 92, 48)),
    (0.85, (251, 180, 26)),
    (1.0, (252, 255, 164)),
)


def overlay(image: Image.Image, relevance: Relevance, highest: float | None = None) -> Image.Image:
    """The image overlaid with its relevance, interpolated. highest: value of the last colour; the peak if None."""
    peak = float(relevance.max()) if highest is None else highest
    scaled = np.clip(relevance / peak, 0, 1) if peak > 0 else np.zeros_like(relevance)
    large = Image.fromarray(scaled.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    strength = np.clip(np.asarray(large), 0, 1)[..., None]  # [H, W, 1]
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    cover = _STRENGTH * strength
    blended = pixels * (1 - cover) + _colours(strength[..., 0]) * cover
    return Image.fromarray(blended.round().astype(np.uint8))


def sheet(image: Image.Image, explanation: Explanation) -> Image.Image:
    """The image, its total relevance, and each word's, side by side with labels, words on one scale."""
    small = image.convert("RGB").resize((PANEL_PX, PANEL_PX), Image.Resampling.LANCZOS)
    highest = max((float(word.relevance.max()) for word in explanation.words), default=0.0)
    panels = [("image", small), ("whole text", overlay(small, explanation.relevance))]
    panels += [
        (f"{word.word} {100 * word.share:.0f} %", overlay(small, word.relevance, highest)) for word in explanation.words
    ]
    return _arranged(panels)


def write_png(path: Path, image: Image.Image) -> None:
    """Write an image as PNG, atomically."""
    write_bytes(path, png_bytes(image))


def png_bytes(image: Image.Image) -> bytes:
    """An image as PNG; the same image gives the same bytes."""
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _colours(strength: NDArray[np.float32]) -> NDArray[np.float32]:
    """strength: [H, W], 0 to 1. Returns [H, W, 3], 0 to 255."""
    places = [place for place, _ in _STOPS]
    channels = [np.interp(strength, places, [colour[channel] for _, colour in _STOPS]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _arranged(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    cell = (PANEL_PX + _GAP_PX, PANEL_PX + _LABEL_PX + _GAP_PX)
    canvas = Image.new("RGB", (columns * cell[0] + _GAP_PX, rows * cell[1] + _GAP_PX), (250, 250, 250))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(15)
    for index, (name, image) in enumerate(panels):
        left, top = _GAP_PX + index % columns * cell[0], _GAP_PX + index // columns * cell[1]
        draw.text((left, top), _fitted(name, draw, font), fill=(30, 36, 42), font=font)
        canvas.paste(image, (left, top + _LABEL_PX))
    return canvas


def _fitted(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The text, truncated to the width of its panel."""
    while len(text) > 1 and draw.textlength(text, font=font) > PANEL_PX:
        text = text[:-2] + "…"
    return text
