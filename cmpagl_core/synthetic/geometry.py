"""Outlines in metres on the ground: rectangles, discs, bands along a line, wobbly half planes (ours)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # [N, 2], metres; x to the right and y down before the scene is turned

_UNIT_SQUARE = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])


def placed(shape: Points, x: float, y: float, heading: float, length: float = 1.0, width: float = 1.0) -> Points:
    """A shape stretched by (length, width), turned by `heading` radians and moved to (x, y)."""
    cos, sin = math.cos(heading), math.sin(heading)
    turn = np.array([(cos, sin), (-sin, cos)])
    outline: Points = (shape * (length, width)) @ turn + (x, y)
    return outline


def rectangle(x: float, y: float, length: float, width: float, heading: float = 0.0) -> Points:
    """A rectangle about its middle, its length along `heading`."""
    return placed(_UNIT_SQUARE, x, y, heading, length, width)


def disc(x: float, y: float, radius: float, corners: int = 24) -> Points:
    """A circle as a polygon."""
    return sector(x, y, radius, 0.0, 2 * math.pi * (1 - 1 / corners), corners)


def sector(x: float, y: float, radius: float, start: float, stop: float, corners: int = 16) -> Points:
    """Points on an arc from angle `start` to `stop`, both included."""
    angles = [start + (stop - start) * step / (corners - 1) for step in range(corners)]
    return np.array([(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles])


def band(line: Points, width: float) -> Points:
    """The outline of a strip of so many metres along a line of points."""
    along = np.gradient(line, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    across /= np.maximum(np.sqrt((across**2).sum(axis=1, keepdims=True)), 1e-9)
    return np.concatenate([line + across * (width / 2), (line - across * (width / 2))[::-1]])


def beside(line: Points, offset: float) -> Points:
    """The line moved sideways by so many metres (to its right in an image whose y runs down)."""
    along = np.gradient(line, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    across /= np.maximum(np.sqrt((across**2).sum(axis=1, keepdims=True)), 1e-9)
    moved: Points = line + across * offset
    return moved


def straight(x: float, y: float, heading: float, reach: float, steps: int = 2) -> Points:
    """A straight line through (x, y), `reach` metres to both sides."""
    along = np.linspace(-reach, reach, steps)
    return np.stack([x + along * math.cos(heading), y + along * math.sin(heading)], axis=1)


def meander(rng: np.random.Generator, reach: float, swing: float, steps: int = 48) -> Points:
    """A smooth winding line through the middle, along x: three waves of falling strength."""
    x = np.linspace(-reach, reach, steps)
    y = np.zeros(steps)
    for waves, share in ((1.0, 1.0), (2.0, 0.45), (3.5, 0.2)):
        phase, strength = rng.uniform(0, 2 * math.pi), share * swing * rng.uniform(0.5, 1.0)
        y += strength * np.array([math.sin(waves * math.pi * value / reach + phase) for value in x.tolist()])
    return np.stack([x, y - y.mean()], axis=1)


def shifted(line: Points, down: float) -> Points:
    """The line moved so many metres down."""
    moved: Points = line + np.array((0.0, down))
    return moved


def half_plane(rng: np.random.Generator, angle: float, offset: float, reach: float, wobble: float) -> Points:
    """Everything further than `offset` metres towards `angle`; its edge swings by about `wobble` metres."""
    edge = meander(rng, reach * 1.6, wobble)
    edge = np.concatenate([edge, [(reach * 1.6, reach * 4), (-reach * 1.6, reach * 4)]])
    return placed(shifted(edge, offset), 0.0, 0.0, angle - math.pi / 2)


def hull(points: Points) -> Points:
    """The convex hull (Andrew's monotone chain)."""
    ordered = sorted({(float(x), float(y)) for x, y in points})
    if len(ordered) < 3:
        return np.array(ordered)

    def chain(items: list[tuple[float, float]]) -> list[tuple[float, float]]:
        kept: list[tuple[float, float]] = []
        for x, y in items:
            while len(kept) > 1:
                (x0, y0), (x1, y1) = kept[-2], kept[-1]
                if (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0:
                    break
                kept.pop()
            kept.append((x, y))
        return kept[:-1]

    return np.array(chain(ordered) + chain(ordered[::-1]))
