"""What lies beside the main thing of a scene: sea, forest, farmland, houses, a road; and scattered trees (ours)."""

from __future__ import annotations

import math

import numpy as np

from cmpagl_core.synthetic.geometry import disc, half_plane, placed, rectangle, straight
from cmpagl_core.synthetic.grounds import farmland, forest, road, sea
from cmpagl_core.synthetic.sketch import Sketch
from cmpagl_core.synthetic.things import Drawing, house, stand, tree

ROOFS = ("red", "grey", "brown", "orange", "white")


def border(sketch: Sketch, name: str, angle: float, offset: float, wall: bool = False) -> None:
    """Lay one ground beyond `offset` metres towards `angle`. name: empty for nothing. wall: sea without a beach."""
    if name == "sea":
        beach_m = 0.0 if wall else sketch.uniform(0.07, 0.12) * sketch.half_m
        outline = sea(sketch, angle, offset, sketch.half_m * sketch.uniform(0.02, 0.06), beach_m)
        sketch.occupy(outline)
        return
    if name == "road":
        width = max(11.0, 6 * sketch.frame.metres_per_px)
        line = straight(*_towards(angle, offset + width / 2), angle + math.pi / 2, sketch.reach_m)
        road(sketch, line, width)
        sketch.occupy(rectangle(*_towards(angle, offset + width / 2), width, 2 * sketch.reach_m, angle))
        return
    outline = half_plane(sketch.rng, angle, offset, sketch.reach_m, sketch.half_m * sketch.uniform(0.01, 0.06))
    if name == "forest":
        forest(sketch, outline)
    elif name == "farmland":
        farmland(sketch, sketch.half_m * sketch.uniform(0.4, 0.55), keep=outline, heading=angle)
    elif name == "house":
        _streets(sketch, angle, offset)
    if name:
        sketch.occupy(outline)


def scatter_trees(sketch: Sketch, tries: int, radius: float) -> list[Drawing]:
    """Trees at random free places of the image."""
    drawings = []
    for _ in range(tries):
        x, y = sketch.uniform(-sketch.reach_m, sketch.reach_m), sketch.uniform(-sketch.reach_m, sketch.reach_m)
        size = radius * sketch.uniform(0.7, 1.3)
        if sketch.free(disc(x, y, size * 1.3, 8)):
            drawings.append(tree(sketch, x, y, size))
    return drawings


def _streets(sketch: Sketch, angle: float, offset: float) -> None:
    """Rows of houses along a lane, beyond `offset`."""
    reach, drawings, colour = sketch.reach_m, list[Drawing](), sketch.choose(ROOFS)
    heading = angle - math.pi / 2
    lane = straight(*_towards(angle, offset + 7), angle + math.pi / 2, reach)
    road(sketch, lane, max(7.0, 4 * sketch.frame.metres_per_px))
    for row in range(math.ceil((reach - offset) / 30)):
        away = offset + 24 + row * 30
        for along in np.arange(-reach, reach, 22.0).tolist():
            spot = placed(np.array([(along + sketch.uniform(-2, 2), away)]), 0.0, 0.0, heading)
            x, y = spot[0].tolist()
            shape = rectangle(x, y, 15, 11, heading)
            if sketch.frame.box(shape) is not None and not sketch.chance(0.12):
                drawings.append(house(sketch, x, y, heading + sketch.uniform(-0.08, 0.08), 15, 11, colour))
    stand(sketch, drawings)


def _towards(angle: float, distance: float) -> tuple[float, float]:
    return distance * math.cos(angle), distance * math.sin(angle)
