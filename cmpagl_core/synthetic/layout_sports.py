"""Baseball fields and tennis courts, one or several, beside a road, houses, a car park or each other (ours)."""

from __future__ import annotations

import math

import numpy as np

from cmpagl_core.synthetic.borders import border, scatter_trees
from cmpagl_core.synthetic.geometry import Points, disc, placed, rectangle, sector
from cmpagl_core.synthetic.grounds import lawn, paved
from cmpagl_core.synthetic.layout_parking import parking_lot
from cmpagl_core.synthetic.sketch import Sketch, shaded
from cmpagl_core.synthetic.textures import Colour
from cmpagl_core.synthetic.things import stand

_DOWN = math.pi / 2
_CLAYS: tuple[Colour, ...] = ((176, 122, 78), (196, 150, 104), (170, 104, 66))
_WHITE = (230, 230, 224)


def baseball_beside_a_road(sketch: Sketch) -> None:
    """One to four baseball fields; mostly beside a road, else beside a forest or houses."""
    beside = sketch.choose(("road", "road", "forest", "house"))
    edge = sketch.half_m * sketch.uniform(0.62, 0.74)
    lawn(sketch)
    border(sketch, beside, _DOWN, edge)
    _baseball_fields(sketch, sketch.whole(1, 4), edge)
    stand(sketch, scatter_trees(sketch, sketch.whole(10, 70), 4.0))
    sketch.relate("baseball field", "beside", beside)


def baseball_beside_tennis(sketch: Sketch) -> None:
    """A baseball field with tennis courts beside it."""
    lawn(sketch)
    half = sketch.half_m
    _baseball_fields(sketch, sketch.choose((1, 1, 2)), half * 0.2)
    _court_rows(sketch, sketch.whole(1, 3), 0.0, half * 0.56)
    stand(sketch, scatter_trees(sketch, sketch.whole(20, 80), 4.0))
    sketch.relate("baseball field", "beside", "tennis court")


def tennis_courts(sketch: Sketch) -> None:
    """One to six tennis courts, with a road, houses or trees beside them."""
    lawn(sketch)
    beside = sketch.choose(("road", "house", "forest", ""))
    edge = sketch.half_m * sketch.uniform(0.7, 0.8)
    border(sketch, beside, _DOWN, edge)
    _court_rows(sketch, sketch.whole(1, 6), 0.0, -sketch.half_m * 0.1)
    stand(sketch, scatter_trees(sketch, sketch.whole(10, 60), 3.2))
    sketch.relate("tennis court", "beside", beside)


def tennis_beside_car_park(sketch: Sketch) -> None:
    """Tennis courts and a car park side by side."""
    lawn(sketch)
    half = sketch.half_m
    _court_rows(sketch, sketch.whole(1, 3), 0.0, -half * 0.3)
    stand(sketch, parking_lot(sketch, 0.0, half * 0.5, half * 1.1, 22.0, share=sketch.uniform(0.15, 0.7)))
    stand(sketch, scatter_trees(sketch, sketch.whole(10, 60), 3.0))
    sketch.relate("tennis court", "beside", "car park")


def _baseball_fields(sketch: Sketch, wanted: int, edge: float) -> None:
    """Fields whose home plates meet in the middle of the free ground, or a single large one."""
    half = sketch.half_m
    middle = (edge - half) / 2 * 0.8
    room = (edge + half) / 2
    if wanted == 1:
        radius, spots = room * 1.1, [(0.0, middle + room * 0.55, -_DOWN)]
    elif wanted == 2:
        radius = room * 0.95
        spots = [(side * room * 0.12, middle + room * 0.4, -_DOWN + side * 0.85) for side in (-1, 1)]
    else:
        radius = room * 0.74
        spots = [
            (radius * 0.16 * math.cos(angle), middle + radius * 0.16 * math.sin(angle), angle)
            for angle in [-_DOWN + turn * _DOWN for turn in range(wanted)]
        ]
    clay, mown = sketch.choose(_CLAYS), shaded(sketch.palette.grass[1], sketch.uniform(0.95, 1.25))
    for x, y, heading in spots:
        _baseball_field(sketch, x, y, heading, radius, clay, mown)


def _baseball_field(
    sketch: Sketch, x: float, y: float, heading: float, radius: float, clay: Colour, mown: Colour
) -> None:
    """One field with its home plate at (x, y), its middle line towards `heading`."""

    def wedge(size: float, open_to: float = math.pi / 4) -> Points:
        arc = sector(0.0, 0.0, size, -open_to, open_to)
        return placed(np.concatenate([[(0.0, 0.0)], arc]), x, y, heading)

    def spot(along: float, across: float = 0.0) -> tuple[float, float]:
        at = placed(np.array([(along * radius, across * radius)]), x, y, heading)[0]
        return float(at[0]), float(at[1])

    canvas, outline = sketch.canvas, wedge(radius)
    canvas.polygon(outline, shaded(clay, 1.04))
    canvas.polygon(wedge(radius * 0.94), mown)
    for ring in range(1, 8, 2):
        arc = [
            sector(0.0, 0.0, radius * (0.45 + 0.065 * (ring + step)), -0.76, 0.76)[:: 1 - 2 * step] for step in (0, 1)
        ]
        canvas.polygon(placed(np.concatenate(arc), x, y, heading), shaded(mown, 1.07))
    infield = sector(0.17 * radius, 0.0, 0.30 * radius, -1.75, 1.75)
    canvas.polygon(placed(np.concatenate([[(-0.02 * radius, 0.0)], infield]), x, y, heading), clay)
    square = np.array([(0.06, 0.0), (0.19, -0.13), (0.32, 0.0), (0.19, 0.13)]) * radius
    canvas.polygon(placed(square, x, y, heading), mown)
    canvas.polygon(disc(*spot(0.19), 0.03 * radius, 12), clay)
    canvas.polygon(disc(*spot(0.01), 0.065 * radius, 14), clay)
    for side in (-1, 1):
        canvas.line(np.array([spot(0.0), spot(0.66, side * 0.66)]), 0.5, _WHITE)
    sketch.note("baseball field", outline)
    sketch.occupy(outline)
    sketch.occupy(disc(*spot(0.1), 0.3 * radius, 12))


def _court_rows(sketch: Sketch, wanted: int, x: float, y: float) -> None:
    """Courts side by side on one hard ground, at most three in a row."""
    across = min(wanted, 3)
    down = -(-wanted // across)
    colour, around = sketch.choose(
        (("blue", "green"), ("green", "red"), ("red", "green"), ("blue", "grey"), ("green", "green"))
    )
    size = 1.0 if down == 1 else 0.92
    width, length = 18.0 * size, 35.0 * size
    ground = rectangle(x, y, across * width + 3, down * length + 3)
    sketch.canvas.shadow(ground, 1.2)
    sketch.canvas.cast()
    paved(sketch, ground, "asphalt")
    sketch.canvas.polygon(ground, shaded(sketch.paint_of(around), 0.8))
    sketch.occupy(rectangle(x, y, across * width + 5, down * length + 5))
    paint = sketch.paint_of(colour)
    for place in range(wanted):
        column, row = place % across, place // across
        _court(
            sketch, x + (column - (across - 1) / 2) * width, y + (row - (down - 1) / 2) * length, size, colour, paint
        )


def _court(sketch: Sketch, x: float, y: float, size: float, colour: str, paint: Colour) -> None:
    width, length = 10.97 * size, 23.77 * size
    outline = rectangle(x, y, width, length)
    sketch.canvas.polygon(outline, paint)
    closed = np.concatenate([outline, outline[:1]])
    sketch.canvas.line(closed, 0.25, _WHITE)
    for share in (-0.375, 0.375):
        sketch.canvas.line(
            np.array([(x + share * width, y - length / 2), (x + share * width, y + length / 2)]), 0.2, _WHITE
        )
    for share in (-0.27, 0.27):
        sketch.canvas.line(
            np.array([(x - 0.375 * width, y + share * length), (x + 0.375 * width, y + share * length)]), 0.2, _WHITE
        )
    sketch.canvas.line(np.array([(x, y - 0.27 * length), (x, y + 0.27 * length)]), 0.2, _WHITE)
    sketch.canvas.line(np.array([(x - 0.55 * width, y), (x + 0.55 * width, y)]), 0.3, (48, 52, 54))
    sketch.note("tennis court", outline, colour)
