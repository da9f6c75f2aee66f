"""The 8 flips and 90-degree rotations of an image (the group D4), and which of them keep a caption true (ours).

Overhead imagery has no upright orientation, so every view is equally valid; but "the lawn on the left" is false after
a flip, and "parked vertically" after a quarter turn.
"""

from __future__ import annotations

import re
from typing import Literal

import torch
from torch import Tensor

VIEWS = 8
Augment = Literal["none", "flips", "d4"]
Tta = Literal["none", "d4"]

_COMPASS = r"(?:north|south|east|west)(?:[- ]?(?:north|south|east|west))*(?:ern|erly|wards?)?"
_SIDES = r"(?:left|right|top|bottom|upper|lower|above|below|beneath|underneath|upwards?|downwards?)(?:most|wards?)?"
_TURNING = r"(?:anti|counter)?[- ]?clockwise"
_DIRECTION = re.compile(rf"\b(?:{_COMPASS}|{_SIDES}|{_TURNING})\b(?![- ]angle)", re.IGNORECASE)
_AXIS = re.compile(r"\b(?:horizontal|vertical)(?:ly)?\b", re.IGNORECASE)

_STRAIGHT_VIEWS = (0, 2, 4, 6)  # identity, half turn, horizontal flip, vertical flip


def d4_transform(images: Tensor, view: int) -> Tensor:
    """View 0 to 7 of images or maps [..., H, W]: flipped left to right from view 4, then turned view % 4 times.

    View 0 is the image itself. Quarter turns are counter-clockwise and swap H and W. Raises ValueError.
    """
    if not 0 <= view < VIEWS:
        raise ValueError(f"view must be 0 to {VIEWS - 1}, not {view}")
    flipped = images.flip(-1) if view >= VIEWS // 2 else images
    return torch.rot90(flipped, view % 4, (-2, -1))


def view_count(tta: Tta) -> int:
    """Number of views that are averaged, the first ones of `d4_transform`."""
    return VIEWS if tta == "d4" else 1


def names_direction(caption: str) -> bool:
    """True if a flip or turn could make the caption false: it contains left, upper, north, clockwise or the like."""
    return _DIRECTION.search(caption) is not None


def names_axis(caption: str) -> bool:
    """True if a quarter turn could make the caption false: it contains horizontal or vertical."""
    return _AXIS.search(caption) is not None


def allowed_views(augment: Augment, caption: str) -> tuple[int, ...]:
    """The views of the recipe's augmentation under which the caption stays true."""
    if augment == "none" or names_direction(caption):
        return (0,)
    if augment == "flips" or names_axis(caption):
        return _STRAIGHT_VIEWS
    return tuple(range(VIEWS))
