"""Grounds with a grain: noise tiles made once from fixed seeds, cropped per scene and coloured by ramps (ours)."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageChops

Colour = tuple[int, int, int]
Ramp = tuple[Colour, ...]

TILE_PX = 1024
_DIHEDRAL = (
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
)
_OCTAVES: dict[str, tuple[tuple[int, int, float], ...]] = {
    # (cells across, cells down, strength) of each octave
    "hills": ((5, 5, 1.0), (11, 11, 0.7), (23, 23, 0.5), (61, 61, 0.35), (150, 150, 0.3), (420, 420, 0.3)),
    "plains": ((3, 3, 1.0), (6, 6, 0.8), (13, 13, 0.5), (34, 34, 0.35), (90, 90, 0.25), (300, 300, 0.25)),
    "grain": ((40, 40, 0.5), (110, 110, 0.6), (256, 256, 0.8), (512, 512, 0.8)),
    "waves": ((9, 14, 0.9), (24, 60, 0.6), (60, 190, 0.8), (130, 380, 0.5)),
}

_CONTRAST = 0.85  # brings a tile's standard deviation to about 46 grey levels

TileName = Literal["hills", "plains", "grain", "waves", "crowns"]


@cache
def tile(name: TileName) -> Image.Image:
    """A grey tile of TILE_PX x TILE_PX; the same on every machine, since it comes from a fixed seed."""
    return _crowns() if name == "crowns" else _noise(name)


def window(rng: np.random.Generator, name: TileName, size: int, zoom: float = 1.0) -> Image.Image:
    """A random square of a tile, flipped or turned at random, as a grey image of size x size.

    zoom: above 1 makes the grain coarser, at the cost of a resize.
    """
    side = min(TILE_PX, max(8, round(size / zoom)))
    left, top = (int(rng.integers(0, TILE_PX - side + 1)) for _ in range(2))
    turn = _DIHEDRAL[int(rng.integers(0, len(_DIHEDRAL)))]
    piece = tile(name).crop((left, top, left + side, top + side))
    if turn is not None:
        piece = piece.transpose(turn)
    return piece if side == size else piece.resize((size, size), Image.Resampling.BILINEAR)


def coloured(level: Image.Image, ramp: Ramp) -> Image.Image:
    """A grey image as colours: 0 is the ramp's first colour, 255 its last, straight lines between."""
    return Image.merge("RGB", [level.point(_table(tuple(colour[channel] for colour in ramp))) for channel in range(3)])


def lit(height: Image.Image, dx: int, dy: int) -> Image.Image:
    """Light and shade on a height map: bright where it stands above the point (dx, dy) pixels up its slope."""
    return ImageChops.subtract(height, ImageChops.offset(height, dx, dy), scale=1.0, offset=128)


@lru_cache(maxsize=512)
def _table(stops: tuple[int, ...]) -> list[int]:
    last = len(stops) - 1
    values = []
    for level in range(256):
        place, rest = divmod(level * last, 255)
        after = stops[min(place + 1, last)]
        values.append((stops[place] * (255 - rest) + after * rest + 127) // 255)
    return values


def _noise(name: str) -> Image.Image:
    rng = np.random.Generator(np.random.PCG64(sum(name.encode()) * 7919))
    total = np.zeros((TILE_PX, TILE_PX), dtype=np.float32)
    for across, down, strength in _OCTAVES[name]:
        cells = Image.fromarray(rng.integers(0, 256, size=(down, across), dtype=np.uint8))
        octave = cells.resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)
        total += (np.asarray(octave, dtype=np.float32) - 127.5) * np.float32(strength)
    total *= np.float32(_CONTRAST / sum(strength**2 for _, _, strength in _OCTAVES[name]) ** 0.5)
    return Image.fromarray(np.clip(np.rint(total + 128), 0, 255).astype(np.uint8))


def _crowns() -> Image.Image:
    """Tree tops seen from above: domes on a jittered grid, the highest wins."""
    rng = np.random.Generator(np.random.PCG64(20_011))
    step, height = 13, np.zeros((TILE_PX, TILE_PX), dtype=np.int16)
    for y in range(0, TILE_PX, step):
        for x in range(0, TILE_PX, step):
            radius, top = int(rng.integers(6, 14)), int(rng.integers(120, 236))
            cx, cy = x + int(rng.integers(0, step)), y + int(rng.integers(0, step))
            x0, x1 = max(cx - radius, 0), min(cx + radius + 1, TILE_PX)
            y0, y1 = max(cy - radius, 0), min(cy + radius + 1, TILE_PX)
            if x0 >= x1 or y0 >= y1:
                continue
            down, across = np.ogrid[y0 - cy : y1 - cy, x0 - cx : x1 - cx]
            dome = top - (110 * (down * down + across * across)) // (radius * radius)
            height[y0:y1, x0:x1] = np.maximum(height[y0:y1, x0:x1], dome)
    grain = np.asarray(_noise("grain"), dtype=np.int16) - 128
    return Image.fromarray(np.clip(height + grain // 5, 0, 255).astype(np.uint8))
