"""Airports: runway, taxiways, apron, terminal and planes; by the sea or beside something else (ours)."""

from __future__ import annotations

import math

import numpy as np

from cmpagl_core.synthetic.borders import border, scatter_trees
from cmpagl_core.synthetic.canvas import SUPERSAMPLE
from cmpagl_core.synthetic.geometry import Points, band, beside, hull, rectangle, straight
from cmpagl_core.synthetic.grounds import dashes, lawn, paved, road
from cmpagl_core.synthetic.sketch import Sketch
from cmpagl_core.synthetic.things import Drawing, building, plane, stand

_MARK = (226, 226, 222)


def airport_by_the_sea(sketch: Sketch) -> None:
    """A runway along the shore, or one that ends at it."""
    _airport(sketch, "sea")


def airport_inland(sketch: Sketch) -> None:
    """An airport with forest, farmland, houses or only grass beside it."""
    _airport(sketch, sketch.choose(("forest", "farmland", "house", "forest", "farmland", "")))


def _airport(sketch: Sketch, neighbour: str) -> None:
    half, reach = sketch.half_m, sketch.reach_m
    lawn(sketch)
    ends_there = neighbour == "sea" and sketch.chance(0.35)
    edge = half * sketch.uniform(0.45, 0.66)
    runway_y = edge - 58.0 if not ends_there else half * sketch.uniform(0.2, 0.5)
    angle = 0.0 if ends_there else math.pi / 2
    border(sketch, neighbour, angle, edge, wall=sketch.chance(0.6))
    stop = edge - 45.0 if ends_there else reach
    parts = [_runway(sketch, runway_y, stop, ends_there)]
    taxi_y = runway_y - sketch.uniform(62, 74)
    _taxiways(sketch, taxi_y, runway_y, stop)
    left, right = -half * sketch.uniform(0.55, 0.8), min(stop, half * 0.95) - half * sketch.uniform(0.15, 0.4)
    depth = sketch.uniform(70, 95)
    apron = rectangle((left + right) / 2, taxi_y - depth / 2 + 8, right - left, depth)
    paved(sketch, apron, "concrete")
    parts.append(apron)
    parts.append(_terminal_and_planes(sketch, left, right, taxi_y - depth + 8, stop))
    if neighbour != "sea" and sketch.chance(0.35):
        parts.append(_second_runway(sketch, left))
    sketch.note_stretch("airport", hull(np.concatenate(parts)))
    for thing in ("runway", "terminal", "plane"):
        sketch.relate(thing, "in", "airport")
    if neighbour:
        sketch.relate("airport", "near", neighbour)
    if neighbour == "sea":
        sketch.relate("airport", "near", "beach")


def _runway(sketch: Sketch, y: float, stop: float, ends: bool) -> Points:
    width, reach = sketch.uniform(40, 50), sketch.reach_m
    outline = rectangle((stop - reach) / 2, y, stop + reach, width)
    _strip(sketch, outline, np.array([(-reach, y), (stop, y)]), width)
    if ends:
        for lane in np.linspace(-0.38, 0.38, 8).tolist():
            sketch.canvas.polygon(rectangle(stop - 22, y + lane * width, 28, width * 0.055), _MARK)
        for lane in (-0.2, 0.2):
            sketch.canvas.polygon(rectangle(stop - 95, y + lane * width, 40, width * 0.1), _MARK)
    sketch.note_stretch("runway", outline)
    return outline


def _strip(sketch: Sketch, outline: Points, line: Points, width: float) -> None:
    paved(sketch, outline, "asphalt")
    dashes(sketch, line, 32.0, 2.0)
    for side in (-0.44, 0.44):
        sketch.canvas.line(beside(line, side * width), 1.4, _MARK)


def _second_runway(sketch: Sketch, apron_left: float) -> Points:
    x, width = apron_left - sketch.uniform(48, 70), 42.0
    line = straight(x, 0.0, math.pi / 2 + sketch.uniform(-0.12, 0.12), sketch.reach_m)
    outline = band(line, width)
    _strip(sketch, outline, line, width)
    sketch.note_stretch("runway", outline)
    return outline


def _taxiways(sketch: Sketch, taxi_y: float, runway_y: float, stop: float) -> None:
    reach, width = sketch.reach_m, 20.0
    lines = [np.array([(-reach, taxi_y), (stop, taxi_y)])]
    for share in (-0.75, 0.0, 0.7):
        x = share * sketch.half_m + sketch.uniform(-20, 20)
        if x < stop - 30:
            lines.append(np.array([(x, taxi_y), (x + sketch.choose((-34.0, 0.0, 34.0)), runway_y)]))
    for line in lines:
        paved(sketch, band(line, width), "asphalt")
    for line in lines:
        sketch.canvas.line(line, 1.2, (208, 178, 74))


def _terminal_and_planes(sketch: Sketch, left: float, right: float, gate_y: float, stop: float) -> Points:
    """The terminal with planes at its gates and perhaps one on the way; behind it cars and a road."""
    span = sketch.uniform(34, 42)
    terminal = rectangle((left + right) / 2, gate_y - 17, (right - left) * sketch.uniform(0.7, 0.95), 30)
    drawings = [building(sketch, terminal, "terminal", 16.0, sketch.choose(("white", "grey")))]
    gates = [
        x
        for x in np.arange(left + span * 0.7, right - span * 0.6, span * 1.22).tolist()
        if _fits(sketch, x, gate_y, span)
    ]
    taken = sketch.rng.permutation(len(gates))[: sketch.whole(1, 7)].tolist()
    for place in sorted(taken):
        x, y = gates[place], gate_y + span * 0.62
        drawings.append(plane(sketch, x, y, -math.pi / 2 + sketch.uniform(-0.12, 0.12), span))
    sketch.relate("plane", "beside", "terminal")
    lane = np.array([(-sketch.reach_m, gate_y - 62), (stop, gate_y - 62)])
    road(sketch, lane, 12.0)
    _car_park(sketch, left, right, gate_y - 92)
    drawings += _hangars(sketch, left, right, gate_y, stop)
    stand(sketch, drawings)
    return terminal


def _hangars(sketch: Sketch, left: float, right: float, gate_y: float, stop: float) -> list[Drawing]:
    """Halls beside the apron and trees about them, so that no two airports look alike."""
    drawings = []
    for x in (left - 38.0, right + 38.0):
        hall = rectangle(x, gate_y - sketch.uniform(-20, 14), sketch.uniform(36, 50), sketch.uniform(30, 46))
        if sketch.chance(0.6) and hall[:, 0].max() < stop and sketch.free(hall):
            drawings.append(building(sketch, hall, "building", 12.0, sketch.choose(("white", "grey", "blue"))))
            sketch.occupy(hall)
    sketch.occupy(rectangle(0, gate_y - 64, 2 * sketch.reach_m, 110))
    sketch.occupy(rectangle(0, gate_y + sketch.reach_m, 2 * sketch.reach_m, 2 * sketch.reach_m))
    return drawings + scatter_trees(sketch, sketch.whole(0, 60), 5.0)


def _car_park(sketch: Sketch, left: float, right: float, y: float) -> None:
    """Seen from so high a car is a dot: rows of dots on asphalt, noted as one car park."""
    outline = rectangle((left + right) / 2, y, (right - left) * 0.9, 44)
    paved(sketch, outline, "asphalt")
    for row in (-14.0, -5.0, 5.0, 14.0):
        for x in np.arange(left + 24, right - 24, 4.6).tolist():
            if sketch.chance(0.5):
                paint = sketch.paint_of(sketch.choose(("white", "white", "grey", "black", "red", "blue")))
                sketch.canvas.polygon(rectangle(x, y + row, 2.4, 4.8), paint)
    sketch.note_stretch("car park", outline)


def _fits(sketch: Sketch, x: float, gate_y: float, span: float) -> bool:
    return sketch.frame.holds(rectangle(x, gate_y + span * 0.6, span * 1.05, span * 1.1), margin_px=SUPERSAMPLE)
