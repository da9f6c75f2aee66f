"""Car parks: rows of bays with cars, beside a building (ours)."""

from __future__ import annotations

import numpy as np

from cmpagl_core.synthetic.borders import scatter_trees
from cmpagl_core.synthetic.geometry import rectangle
from cmpagl_core.synthetic.grounds import lawn, paved
from cmpagl_core.synthetic.sketch import Sketch
from cmpagl_core.synthetic.things import Drawing, building, car, stand

CAR_PAINTS = ("white", "white", "grey", "black", "red", "blue", "grey")
_BAY_M = (2.8, 5.4)


def car_park(sketch: Sketch) -> None:
    """A car park, nearly empty, half full or full, mostly with a building beside it."""
    lawn(sketch)
    half = sketch.half_m
    share = sketch.choose((0.05, 0.1, 0.5, 0.8, 0.95))
    with_building = sketch.chance(0.7)
    y, depth = (half * 0.25, half * 1.25) if with_building else (0.0, half * 1.7)
    drawings = parking_lot(sketch, 0.0, y, half * sketch.uniform(1.5, 2.4), depth, share)
    if with_building:
        shape = rectangle(sketch.uniform(-0.2, 0.2) * half, y - depth / 2 - half * 0.25, half * 1.2, half * 0.36)
        drawings.append(building(sketch, shape, "building", 9.0, sketch.choose(("white", "grey", "red", "brown"))))
        sketch.occupy(shape)
    stand(sketch, drawings + scatter_trees(sketch, sketch.whole(20, 80), 3.0))
    sketch.relate("car", "in", "car park")
    sketch.relate("car park", "beside", "building")


def parking_lot(sketch: Sketch, x: float, y: float, length: float, depth: float, share: float) -> list[Drawing]:
    """Asphalt with double rows of bays, so large a share of them taken. Returns the cars, to be drawn later."""
    outline = rectangle(x, y, length, depth)
    sketch.canvas.polygon(rectangle(x, y, length + 1.6, depth + 1.6), sketch.palette.concrete[2])
    paved(sketch, outline, "asphalt")
    sketch.note_stretch("car park", outline)
    sketch.occupy(rectangle(x, y, length + 3, depth + 3))
    bay, deep = _BAY_M
    drawings, top = list[Drawing](), y - depth / 2 + 0.6
    rows = [top + deep * (1.5 if row % 2 else 0.5) + (row // 2) * (2 * deep + 6.5) for row in range(40)]
    for row in [row for row in rows if row + deep / 2 < y + depth / 2]:
        for left in np.arange(x - length / 2 + 2, x + length / 2 - 2 - bay, bay).tolist():
            line = np.array([(left, row - deep / 2), (left, row + deep / 2)])
            sketch.canvas.line(line, 0.16, (214, 214, 208))
            middle = (left + bay / 2, row + sketch.uniform(-0.3, 0.3))
            if sketch.chance(share) and sketch.frame.holds(rectangle(*middle, 3, 5)):
                drawings.append(car(sketch, *middle, np.pi / 2 * sketch.choose((1, -1)), sketch.choose(CAR_PAINTS)))
    return drawings
