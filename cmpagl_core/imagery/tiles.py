"""Tiling: how scenes are cut into images of one size, the last of each row and column complete (ours)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.imagery.image_ref import Window

DEFAULT_TILE_PX = 512
SCENE_PIXELS = 4_000_000
"""What is larger is cut into tiles, where nothing else is asked for."""

_MIN_PX, _MAX_PX, _MAX_OVERLAP = 16, 16_384, 0.9
_MAX_TILES = 1_000_000  # of one scene
_SPELLED = re.compile(r"(\d+(?:\.\d+)?)(px|m)(?:\+(0?\.\d+|0))?")


@dataclass(frozen=True)
class Tiling:
    """size_px: the side of a tile in pixels; size_m: in metres, by each scene's ground sampling distance.

    With neither, images of over four megapixels are cut by 512 pixels and others are whole; size_px 0 leaves all whole.
    overlap: the share of a tile that the next one shows too. Raises UsageError for what makes no sense.
    """

    size_px: int | None = None
    size_m: float | None = None
    overlap: float = 0.0

    def __post_init__(self) -> None:
        if self.size_px is not None and self.size_m is not None:
            raise UsageError("--tile and --tile-m both say how large a tile is", hint="give one of them")
        if self.size_px and not _MIN_PX <= self.size_px <= _MAX_PX:
            raise UsageError(
                f"--tile {self.size_px} is not a valid tile size",
                hint=f"give {_MIN_PX} to {_MAX_PX:,} pixels, or 0 for none",
            )
        if self.size_m is not None and not 0 < self.size_m < 1e7:
            raise UsageError(f"--tile-m {self.size_m:g} is not a valid tile size", hint="give metres")
        if not 0 <= self.overlap <= _MAX_OVERLAP:
            raise UsageError(f"--overlap {self.overlap:g} is not a valid overlap", hint=f"give 0 to {_MAX_OVERLAP:g}")

    @classmethod
    def parse(cls, text: str) -> Tiling:
        """What `str` made. Raises UsageError for anything else."""
        kind, _, overlap = text.partition("+")
        if kind == "auto":
            return cls(overlap=float(overlap or 0))
        found = _SPELLED.fullmatch(text)
        if found is None:
            raise UsageError(f"tiling {text!r} is not known")
        size = float(found[1])
        overlap = found[3] or "0"
        return cls(size_px=int(size), overlap=float(overlap)) if found[2] == "px" else cls(None, size, float(overlap))

    def __str__(self) -> str:
        size = "auto" if self.size_px is None and self.size_m is None else f"{self.size_px}px"
        size = size if self.size_m is None else f"{self.size_m!r}m"
        return size + (f"+{self.overlap!r}" if self.overlap else "")

    @property
    def is_default(self) -> bool:
        """Whether nothing was asked for."""
        return self.size_px is None and self.size_m is None

    def tile_px(self, path: Path, width: int, height: int, gsd_m: float | None) -> int:
        """The side of a tile of an image; 0 where it is taken whole.

        Raises DataError for a scene of which it is not known how large a metre is, or too large to be cut so finely.
        """
        is_scene = width * height > SCENE_PIXELS
        if self.is_default:
            return DEFAULT_TILE_PX if is_scene else 0
        size = self.size_px
        if self.size_m is not None:
            if gsd_m is None:
                if not is_scene:
                    return 0
                raise DataError(f"{path} does not say how large a pixel is in metres", hint="give --tile in pixels")
            size = round(self.size_m / gsd_m)
            if not _MIN_PX <= size <= _MAX_PX:
                raise DataError(
                    f"{self.size_m:g} m are {size:,} pixels of {path}, at {gsd_m:.3g} m each",
                    hint=f"choose a tile of {_MIN_PX} to {_MAX_PX:,} pixels",
                )
        return size if size and (width > size or height > size) else 0

    def windows(self, path: Path, width: int, height: int, tile_px: int) -> list[Window]:
        """The tiles of an image, row by row; those at the right and lower edge are shifted inwards.

        Raises DataError when there are too many.
        """
        lefts, tops = (self._starts(side, tile_px) for side in (width, height))
        if len(lefts) * len(tops) > _MAX_TILES:
            raise DataError(
                f"{path} would be cut into {len(lefts) * len(tops):,} tiles, more than {_MAX_TILES:,}",
                hint="choose larger tiles with --tile",
            )
        across, down = min(tile_px, width), min(tile_px, height)
        return [Window(left, top, across, down) for top in tops for left in lefts]

    def _starts(self, side: int, tile_px: int) -> list[int]:
        step = max(1, round(tile_px * (1 - self.overlap)))
        last = max(0, side - tile_px)
        return [*range(0, last, step), last]


WHOLE = Tiling(size_px=0)
