"""Storage tanks, houses and roads (ours)."""

from __future__ import annotations

import math

import numpy as np

from cmpagl_core.synthetic.borders import ROOFS, border, scatter_trees
from cmpagl_core.synthetic.geometry import Points, band, disc, rectangle, straight
from cmpagl_core.synthetic.grounds import lawn, paved, road
from cmpagl_core.synthetic.layout_parking import CAR_PAINTS
from cmpagl_core.synthetic.sketch import Sketch, shaded
from cmpagl_core.synthetic.things import Drawing, building, car, house, stand, tank

_DOWN = math.pi / 2


def storage_tanks(sketch: Sketch) -> None:
    """One to twelve tanks on paved ground, with a road, a forest or farmland beside them."""
    _storage_tanks(sketch, sketch.choose(("road", "road", "forest", "farmland", "")))


def storage_tanks_by_the_sea(sketch: Sketch) -> None:
    """Tanks on the shore."""
    _storage_tanks(sketch, "sea")


def houses_in_rows(sketch: Sketch) -> None:
    """A dense quarter: streets with houses on both sides, gardens and cars."""
    lawn(sketch)
    half, reach, drawings = sketch.half_m, sketch.reach_m, list[Drawing]()
    spacing, colour = sketch.uniform(50, 60), sketch.choose(ROOFS)
    first = sketch.uniform(-spacing / 2, spacing / 2)
    for street in [first + step * spacing for step in range(-4, 5)]:
        if abs(street) > reach:
            continue
        line = straight(0, street, 0.0, reach)
        road(sketch, line, 7.5)
        sketch.occupy(band(line, 10))
        for side in (-1, 1):
            drawings += _row(sketch, street + side * sketch.uniform(14, 16), colour)
        for x in np.arange(-half, half, 15.0).tolist():
            spot = rectangle(x, street + 2.0, 4.7, 2.0)
            if sketch.chance(0.2) and sketch.frame.holds(spot):
                drawings.append(car(sketch, x, street + 2.0, 0.0, sketch.choose(CAR_PAINTS)))
    stand(sketch, drawings + scatter_trees(sketch, sketch.whole(60, 160), 2.6))
    sketch.relate("house", "along", "road")


def houses_among_trees(sketch: Sketch) -> None:
    """One to seven houses by a lane, with a forest or farmland beside them."""
    lawn(sketch)
    half, beside = sketch.half_m, sketch.choose(("forest", "farmland", "forest"))
    border(sketch, beside, _DOWN, half * sketch.uniform(0.3, 0.5))
    lane = half * sketch.uniform(-0.3, -0.1)
    line = straight(0, lane, sketch.uniform(-0.06, 0.06), sketch.reach_m, 12)
    road(sketch, line, 6.5)
    sketch.occupy(band(line, 14))
    drawings, wanted, colour = list[Drawing](), sketch.whole(1, 7), sketch.choose(ROOFS)
    for _ in range(60):
        x, away = sketch.uniform(-half, half), sketch.choose((-1, 1)) * sketch.uniform(14, 18)
        shape = rectangle(x, lane + away, 16, 11)
        if wanted and sketch.free(rectangle(x, lane + away, 20, 14)) and sketch.frame.holds(shape):
            drawings.append(house(sketch, x, lane + away, sketch.uniform(-0.15, 0.15), 15, 10, colour))
            sketch.occupy(rectangle(x, lane + away, 20, 14))
            wanted -= 1
    stand(sketch, drawings + scatter_trees(sketch, sketch.whole(30, 110), 3.4))
    sketch.relate("house", "near", beside)
    sketch.relate("house", "beside", "road")


def roads(sketch: Sketch) -> None:
    """One road, or two that cross, with a few cars; houses, forest or farmland beside."""
    lawn(sketch)
    half, crossing = sketch.half_m, sketch.chance(0.5)
    width = sketch.choose((11.0, 15.0, 22.0))
    beside = sketch.choose(("forest", "farmland", "house", "forest", "farmland", ""))
    border(sketch, beside, _DOWN, width * 0.9)
    if beside in ("forest", "farmland") and not crossing and sketch.chance(0.5):
        border(sketch, beside, -_DOWN, width * 0.9)
        sketch.relate("road", "between", beside)
    lines = [straight(0, 0, sketch.uniform(-0.03, 0.03), sketch.reach_m, 8)]
    if crossing:
        lines.append(
            straight(half * sketch.uniform(-0.3, 0.3), 0, _DOWN + sketch.uniform(-0.2, 0.2), sketch.reach_m, 8)
        )
    for line in lines:
        road(sketch, line, width)
        sketch.occupy(band(line, width + 4))
    if crossing:
        paved(sketch, disc(*_meeting(lines), width * 0.72, 8), "asphalt")
    drawings = _traffic(sketch, lines[0], width, sketch.choose((0, 2, 4, 8)))
    stand(sketch, drawings + scatter_trees(sketch, sketch.whole(20, 90), 3.4))
    sketch.relate("road", "beside", beside)
    sketch.relate("car", "on", "road")


def _storage_tanks(sketch: Sketch, beside: str) -> None:
    lawn(sketch)
    half, edge = sketch.half_m, sketch.half_m * sketch.uniform(0.45, 0.6)
    border(sketch, beside, _DOWN, edge, wall=sketch.chance(0.7))
    top = -half * 0.8
    room_x, room_y = half * 1.55, edge - 6 - top
    rows, columns = sketch.choose(((1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (2, 3)))
    step = min(room_x / columns, room_y / rows, 46.0)
    radius = step * sketch.uniform(0.3, 0.42)
    middle = (top + edge - 6) / 2
    yard = rectangle(0, middle, columns * step + 14, rows * step + 8)
    if sketch.chance(0.75):
        paved(sketch, yard, "concrete")
    else:
        sketch.canvas.polygon(yard, sketch.choose(((128, 108, 84), (112, 104, 92))))
    spots = [
        ((c - (columns - 1) / 2) * step, middle + (r - (rows - 1) / 2) * step)
        for r in range(rows)
        for c in range(columns)
    ]
    _bunds(sketch, spots, step)
    colour = sketch.choose(("white", "white", "white", "grey", "brown"))
    left_out = sketch.whole(0, len(spots) // 4)
    chosen = sorted(sketch.rng.permutation(len(spots)).tolist()[left_out:])
    drawings = [tank(sketch, spots[place][0], spots[place][1], radius, colour) for place in chosen]
    hall = rectangle(half * sketch.uniform(-0.5, 0.5), top - 10, sketch.uniform(20, 40), 13)
    sketch.occupy(yard)
    if sketch.chance(0.5) and sketch.free(hall):
        drawings.append(building(sketch, hall, "building", 7.0, sketch.choose(("white", "grey", "blue"))))
        sketch.occupy(hall)
    stand(sketch, drawings + scatter_trees(sketch, sketch.whole(0, 40), 3.0))
    sketch.relate("storage tank", "near", beside)


def _bunds(sketch: Sketch, spots: list[tuple[float, float]], step: float) -> None:
    """Low walls about each tank's place, and pipes along the rows."""
    grey = shaded(sketch.palette.concrete[0], 0.8)
    for x, y in spots:
        wall = rectangle(x, y, step * 0.95, step * 0.95)
        sketch.canvas.line(np.concatenate([wall, wall[:1]]), 0.8, grey)
    for y in sorted({y for _, y in spots}):
        xs = [x for x, other in spots if other == y]
        for shift in (-1.0, 0.6):
            sketch.canvas.line(np.array([(min(xs) - step / 2, y + shift), (max(xs) + step / 2, y + shift)]), 0.7, grey)


def _row(sketch: Sketch, y: float, colour: str) -> list[Drawing]:
    drawings = []
    x = -sketch.reach_m + sketch.uniform(0, 8)
    while x < sketch.reach_m:
        length, width = sketch.uniform(11, 15), sketch.uniform(8, 11)
        shape = rectangle(x, y, length, width)
        if sketch.chance(0.92) and sketch.frame.box(shape) is not None:
            drawings.append(
                house(
                    sketch, x, y, sketch.choose((0.0, 0.0, _DOWN)) + sketch.uniform(-0.04, 0.04), length, width, colour
                )
            )
            sketch.occupy(rectangle(x, y, length + 1, width + 1))
        x += sketch.uniform(16, 19)
    return drawings


def _traffic(sketch: Sketch, line: Points, width: float, wanted: int) -> list[Drawing]:
    drawings, (dx, dy) = list[Drawing](), (line[-1] - line[0]).tolist()
    heading = math.atan2(dy, dx)
    for place in range(wanted):
        along = ((place + sketch.uniform(0.2, 0.8)) / max(wanted, 1) - 0.5) * 1.9 * sketch.half_m
        lane = sketch.choose((-0.25, 0.25)) * width
        x, y = (
            along * math.cos(heading) - lane * math.sin(heading),
            along * math.sin(heading) + lane * math.cos(heading),
        )
        if sketch.frame.holds(rectangle(x, y, 5, 2, heading)):
            drawings.append(car(sketch, x, y, heading, sketch.choose(CAR_PAINTS)))
    return drawings


def _meeting(lines: list[Points]) -> tuple[float, float]:
    """Where the second line crosses the first, near enough for a patch of asphalt."""
    (x0, y0), (x1, y1) = lines[0][0].tolist(), lines[0][-1].tolist()
    (x2, y2), (x3, y3) = lines[1][0].tolist(), lines[1][-1].tolist()
    across = (x1 - x0) * (y3 - y2) - (y1 - y0) * (x3 - x2)
    share = ((x2 - x0) * (y3 - y2) - (y2 - y0) * (x3 - x2)) / across
    return x0 + share * (x1 - x0), y0 + share * (y1 - y0)
