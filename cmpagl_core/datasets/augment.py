"""The 8 flips and 90-degree rotations of an image (the group D4), and which of them keep a caption true (ours).

A scene has no upright position, so every view is as good an image of it; but "the lawn on the left" is false after
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

_STRAIGHT_VIEWS = (0, 2, 4, 6)  # as it is, half turn, flipped left to right, flipped top to bottom


def d4_transform(images: Tensor, view: int) -> Tensor:
    """View 0 to 7 of images or maps [..., H, W]: flipped left to right from 4 on, then view % 4 quarter turns.

    View 0 is the image itself. Quarter turns are counter-clockwise and swap H and W. Raises ValueError.
    """
    if not 0 <= view < VIEWS:
        raise ValueError(f"view must be 0 to {VIEWS - 1}, not {view}")
    flipped = images.flip(-1) if view >= VIEWS // 2 else images
    return torch.rot90(flipped, view % 4, (-2, -1))


def view_count(tta: Tta) -> int:
    """How many views of an image are averaged: the first so many of `d4_transform`."""
    return VIEWS if tta == "d4" else 1


def names_direction(caption: str) -> bool:
    """True if a flip or a turn could make the caption false: it says left, upper, north, clockwise or the like."""
    return _DIRECTION.search(caption) is not None


def names_axis(caption: str) -> bool:
    """True if a quarter turn could make the caption false: it says horizontal or vertical."""
    return _AXIS.search(caption) is not None


def allowed_views(augment: Augment, caption: str) -> tuple[int, ...]:
    """The views under which the caption stays true, out of those that the recipe asks for."""
    if augment == "none" or names_direction(caption):
        return (0,)
    if augment == "flips" or names_axis(caption):
        return _STRAIGHT_VIEWS
    return tuple(range(VIEWS))
