"""Beaches and harbours: sand between land and sea; piers with boats in calm water (ours)."""

from __future__ import annotations

import math

import numpy as np

from cmpagl_core.synthetic.borders import ROOFS, border, scatter_trees
from cmpagl_core.synthetic.geometry import Points, half_plane, hull, rectangle
from cmpagl_core.synthetic.grounds import lawn, open_water, paved, sea
from cmpagl_core.synthetic.sketch import Sketch
from cmpagl_core.synthetic.things import Drawing, boat, building, house, stand

_DOWN = math.pi / 2


def beach(sketch: Sketch) -> None:
    """Sea, surf and sand; behind the sand trees, a road or a forest."""
    _beach(sketch, sketch.choose(("road", "forest", "forest", "")))


def beach_with_houses(sketch: Sketch) -> None:
    """A beach with a few or many houses behind it."""
    _beach(sketch, "house")


def harbour(sketch: Sketch) -> None:
    """Piers that reach from a quay into the sea, with boats on both sides."""
    half, reach = sketch.half_m, sketch.reach_m
    lawn(sketch)
    quay_y = -half * sketch.uniform(0.25, 0.6)
    water = half_plane(sketch.rng, _DOWN, quay_y, reach, 0.0)
    mask = sketch.canvas.mask(water)
    open_water(sketch, mask, colour := sketch.choose(("green", "green", "blue")), surf=False)
    sketch.note_mask("sea", mask, colour)
    quay_m = sketch.uniform(9, 16)
    quay = rectangle(0, quay_y - quay_m / 2, 2 * reach, quay_m)
    paved(sketch, quay, "concrete")
    sketch.occupy(rectangle(0, quay_y + reach, 2 * reach, 2 * reach + 2 * quay_m))
    _buildings_behind(sketch, quay_y - quay_m)
    parts = [quay, *_piers(sketch, quay_y)]
    sketch.note_stretch("harbour", hull(np.concatenate(parts)))
    for thing, word, target in (
        ("harbour", "near", "sea"),
        ("pier", "in", "sea"),
        ("boat", "beside", "pier"),
        ("boat", "in", "harbour"),
    ):
        sketch.relate(thing, word, target)


def _beach(sketch: Sketch, behind: str) -> None:
    half = sketch.half_m
    lawn(sketch)
    shore = half * sketch.uniform(-0.2, 0.3)
    width = half * sketch.uniform(0.16, 0.3)
    if behind in ("forest", "road"):
        border(sketch, behind, -_DOWN, -shore + width * 1.25)
    sketch.occupy(sea(sketch, _DOWN, shore, half * sketch.uniform(0.04, 0.12), width))
    sketch.occupy(rectangle(0, shore - width / 2, 2 * sketch.reach_m, width * 1.4))
    drawings = _boats_at_sea(sketch, shore) if sketch.chance(0.35) else []
    if behind == "house":
        drawings += _row_of_houses(sketch, shore - width * 1.3)
    drawings += scatter_trees(sketch, sketch.whole(15, 50) if behind != "forest" else 0, 4.0)
    stand(sketch, drawings)
    sketch.relate("beach", "beside", "sea")
    sketch.relate("beach", "near", behind)


def _boats_at_sea(sketch: Sketch, shore: float) -> list[Drawing]:
    drawings, wanted = list[Drawing](), sketch.whole(1, 4)
    for step in range(wanted):
        x = (step - (wanted - 1) / 2) * sketch.half_m * 0.4
        y = shore + (sketch.half_m * 0.95 - shore) * sketch.uniform(0.4, 0.75)
        hull = rectangle(x, y, 16, 8)
        if sketch.frame.holds(hull):
            drawings.append(boat(sketch, x, y, sketch.uniform(0, 2 * math.pi), 14.0, "white"))
    sketch.relate("boat", "in", "sea")
    return drawings


def _row_of_houses(sketch: Sketch, edge: float) -> list[Drawing]:
    drawings, wanted, colour = list[Drawing](), sketch.whole(2, 9), sketch.choose(ROOFS)
    y = edge - 9.0
    while wanted and y > -sketch.reach_m:
        for x in np.arange(-sketch.half_m, sketch.half_m, 21.0).tolist():
            shape = rectangle(x, y, 15, 10)
            if wanted and sketch.frame.holds(shape) and sketch.chance(0.7):
                drawings.append(house(sketch, x, y, sketch.uniform(-0.15, 0.15), 15, 10, colour))
                sketch.occupy(shape)
                wanted -= 1
        y -= 20.0
    return drawings


def _buildings_behind(sketch: Sketch, edge: float) -> None:
    drawings, x = list[Drawing](), -sketch.half_m
    while x < sketch.half_m:
        length, width = sketch.uniform(18, 34), sketch.uniform(12, 20)
        shape = rectangle(x + length / 2, edge - 5 - width / 2, length, width)
        if sketch.chance(0.55):
            drawings.append(building(sketch, shape, "building", 8.0, sketch.choose(("white", "grey", "red", "blue"))))
            sketch.occupy(shape)
        x += length + sketch.uniform(5, 20)
    drawings += scatter_trees(sketch, 30, 3.0)
    stand(sketch, drawings)


def _piers(sketch: Sketch, quay_y: float) -> list[Points]:
    """One to four piers and the boats on them. Returns the piers' outlines."""
    half, wanted = sketch.half_m, sketch.whole(1, 4)
    gap = min(46.0, 1.5 * half / wanted)
    drawings, piers, share = list[Drawing](), list[Points](), sketch.choose((0.12, 0.3, 0.8, 0.95))
    length = half * sketch.uniform(0.75, 1.0)
    for step in range(wanted):
        x = (step - (wanted - 1) / 2) * gap
        outline = rectangle(x, quay_y + length / 2, 3.4, length)
        if not sketch.frame.holds(outline):
            outline = rectangle(x, quay_y + length * 0.4, 3.4, length * 0.8)
        piers.append(outline)
        sketch.canvas.shadow(outline, 1.5)
        sketch.note("pier", outline)
        drawings += _moored(sketch, x, quay_y + 10, float(outline[:, 1].max()) - 4, min(13.0, gap * 0.36), share)
    sketch.canvas.cast()
    for outline in piers:
        sketch.canvas.polygon(outline, sketch.palette.concrete[2])
    stand(sketch, drawings)
    return piers


def _moored(sketch: Sketch, x: float, start: float, stop: float, length: float, share: float) -> list[Drawing]:
    drawings = []
    for side in (-1, 1):
        for y in np.arange(start, stop, length * 0.44).tolist():
            spot = x + side * (length / 2 + 2.6)
            if sketch.chance(share) and sketch.frame.holds(rectangle(spot, y, length, length * 0.4)):
                heading = (0.0 if side > 0 else math.pi) + sketch.uniform(-0.05, 0.05)
                colour = sketch.choose(("white", "white", "white", "white", "white", "red"))
                drawings.append(boat(sketch, spot, y, heading, length * sketch.uniform(0.8, 1.0), colour))
    return drawings
