"""An image being drawn in metres: turned as a whole, supersampled, with shadows from one sun (ours)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from cmpagl_core.synthetic.geometry import Points, hull
from cmpagl_core.synthetic.textures import Colour
from cmpagl_core.synthetic.truth import Box

SUPERSAMPLE = 2
_SHADOW_STRENGTH = 0.58


@dataclass(frozen=True)
class Frame:
    """From metres on the ground, before the scene is turned, to pixels of the finished image."""

    size_px: int
    metres_per_px: float
    heading: float  # radians by which the whole scene is turned
    sun_heading: float  # radians in the image, the way shadows fall
    shadow_per_metre: float  # metres of shadow for a metre of height

    @cached_property
    def _turn(self) -> Points:
        cos, sin = math.cos(self.heading), math.sin(self.heading)
        return np.array([(cos, sin), (-sin, cos)]) / self.metres_per_px

    @property
    def half_m(self) -> float:
        """Half the image's side in metres: everything this near to the middle is surely in the image."""
        return self.size_px * self.metres_per_px / 2

    @property
    def reach_m(self) -> float:
        """Half the diagonal and a little: nothing further from the middle can be seen."""
        return self.half_m * 1.45

    def pixels(self, points: Points) -> Points:
        """[N, 2] metres to [N, 2] pixels, rounded so that the last bits of sin and cos cannot show."""
        spots: Points = np.round(points @ self._turn + self.size_px / 2, 3)
        return spots

    def box(self, points: Points) -> Box | None:
        """The bounding box, cut at the image's edge; None where nothing is left."""
        spots = self.pixels(points)
        low, high = np.floor(spots.min(axis=0)), np.ceil(spots.max(axis=0))
        x0, y0 = (int(max(value, 0)) for value in low)
        x1, y1 = (int(min(value, self.size_px)) for value in high)
        return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None

    def inside_share(self, points: Points) -> float:
        """Which share of the bounding box lies inside the image."""
        spots = self.pixels(points)
        low, high = spots.min(axis=0), spots.max(axis=0)
        seen = np.minimum(high, self.size_px) - np.maximum(low, 0)
        return float(np.prod(np.maximum(seen, 0)) / max(float(np.prod(high - low)), 1e-9))

    def holds(self, points: Points, margin_px: float = 2.0) -> bool:
        """Whether the whole outline lies inside the image."""
        spots = self.pixels(points)
        return bool((spots >= margin_px).all() and (spots <= self.size_px - margin_px).all())

    def shadow_m(self, height_m: float) -> tuple[float, float]:
        """How far the shadow of something so high falls, in metres before the scene is turned."""
        length, angle = height_m * self.shadow_per_metre, self.sun_heading - self.heading
        return length * math.cos(angle), length * math.sin(angle)


class Canvas:
    """The image, SUPERSAMPLE times as wide as it will be, and the shadows that wait to be cast on it."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.side = frame.size_px * SUPERSAMPLE
        self.image = Image.new("RGB", (self.side, self.side))
        self._draw = ImageDraw.Draw(self.image)
        self._shadow = Image.new("L", (self.side, self.side), 0)
        self._shadow_draw = ImageDraw.Draw(self._shadow)
        self._shadow_waits = False

    def polygon(self, points: Points, colour: Colour) -> None:
        """Fill an outline with one colour."""
        self._draw.polygon(self._spots(points), fill=colour)

    def line(self, points: Points, width_m: float, colour: Colour) -> None:
        """A line of so many metres, never thinner than half a finished pixel, so that markings can be seen."""
        width = max(width_m / self.frame.metres_per_px * SUPERSAMPLE, SUPERSAMPLE / 2)
        self._draw.line(self._spots(points), fill=colour, width=max(1, round(width)), joint="curve")

    def mask(self, outline: Points) -> Image.Image:
        """A grey image, 255 inside the outline."""
        mask = Image.new("L", (self.side, self.side), 0)
        ImageDraw.Draw(mask).polygon(self._spots(outline), fill=255)
        return mask

    def paint(self, ground: Image.Image, mask: Image.Image | None = None) -> None:
        """Lay a ground over the whole image, or where the mask says."""
        self.image.paste(ground, (0, 0), mask)

    def shadow(self, outline: Points, height_m: float) -> None:
        """Let something of that outline and height cast a shadow when `cast` is called."""
        swept = hull(np.concatenate([outline, outline + self.frame.shadow_m(height_m)]))
        if len(swept) > 2:
            self._shadow_draw.polygon(self._spots(swept), fill=255)
            self._shadow_waits = True

    def cast(self) -> None:
        """Darken what is drawn so far by the shadows that wait; what is drawn afterwards stands in the sun."""
        if not self._shadow_waits:
            return
        strength = self._shadow.point([round(level * _SHADOW_STRENGTH) for level in range(256)])
        self.image.paste((18, 22, 34), (0, 0), strength)
        self._shadow.paste(0, (0, 0, self.side, self.side))
        self._shadow_waits = False

    def cut(self, outline: Points, inside: Image.Image | None = None) -> tuple[Image.Image, tuple[int, int]] | None:
        """The outline's mask cut to its bounding box, and that box's corner: cheap for small things.

        inside: a mask of the whole canvas that cuts further. None when nothing is left.
        """
        spots = self.frame.pixels(outline) * SUPERSAMPLE
        left, top = (max(0, int(value)) for value in spots.min(axis=0))
        right, bottom = (min(self.side, int(value) + 1) for value in spots.max(axis=0))
        if left >= right or top >= bottom:
            return None
        mask = Image.new("L", (right - left, bottom - top), 0)
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in spots.tolist()], fill=255)
        if inside is not None:
            mask = ImageChops.multiply(mask, inside.crop((left, top, right, bottom)))
        return None if mask.getbbox() is None else (mask, (left, top))

    def mask_box(self, mask: Image.Image, corner: tuple[int, int] = (0, 0)) -> Box | None:
        """The bounding box of a mask's bright part in finished pixels; None where it is empty."""
        found = mask.point([0] * 128 + [255] * 128).getbbox()
        if found is None:
            return None
        x0, y0 = ((found[axis] + corner[axis]) // SUPERSAMPLE for axis in range(2))
        x1, y1 = (-((-found[axis + 2] - corner[axis]) // SUPERSAMPLE) for axis in range(2))
        return x0, y0, x1, y1

    def visible_share(self, mask: Image.Image) -> float:
        """Share of the image that a mask covers; the mask may be cut."""
        return float(sum(mask.histogram()[128:]) / self.side**2)

    def finished(self) -> Image.Image:
        """The image at its own size."""
        size = self.frame.size_px
        return self.image.resize((size, size), Image.Resampling.BOX)

    def _spots(self, points: Points) -> Sequence[tuple[float, float]]:
        return [(x, y) for x, y in (self.frame.pixels(points) * SUPERSAMPLE).tolist()]


def soften(mask: Image.Image, radius_px: float) -> Image.Image:
    """A mask blurred over so many canvas pixels, computed at a quarter of the size since it has no detail."""
    small = mask.reduce(4).filter(ImageFilter.GaussianBlur(max(radius_px / 4, 0.1)))
    return small.resize(mask.size, Image.Resampling.BILINEAR)
