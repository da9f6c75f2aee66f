"""Things that stand on the ground: planes, boats, tanks, cars, houses, terminals and trees (ours).

Each function lets its shadow wait (`Canvas.shadow`) and returns a call that draws the thing itself,
so that a layout casts all shadows first and no shadow falls on what stands in the sun.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from cmpagl_core.synthetic.geometry import Points, disc, placed, rectangle, sector
from cmpagl_core.synthetic.sketch import Sketch, shaded

Drawing = Callable[[], None]

_MIRROR = np.array((1.0, -1.0))
_SIDE = np.array([(0.52, 0.0), (0.48, 0.035), (0.38, 0.055), (-0.28, 0.055), (-0.52, 0.014)])
_FUSELAGE = np.concatenate([_SIDE, _SIDE[:0:-1] * _MIRROR])
_WING = np.array([(0.14, 0.03), (-0.10, 0.5), (-0.18, 0.5), (-0.10, 0.03)])
_TAILPLANE = np.array([(-0.38, 0.02), (-0.48, 0.19), (-0.54, 0.19), (-0.50, 0.02)])
_ENGINE = np.array([(0.09, 0.15), (0.09, 0.195), (-0.02, 0.195), (-0.02, 0.15)])
_HULL = np.array([(0.5, 0.0), (0.36, 0.1), (0.12, 0.16), (-0.42, 0.15), (-0.5, 0.11)])
_HULL = np.concatenate([_HULL, _HULL[::-1] * _MIRROR])


def stand(sketch: Sketch, drawings: Iterable[Drawing]) -> None:
    """Cast the shadows that wait, then draw the things themselves."""
    waiting = list(drawings)
    sketch.canvas.cast()
    for draw in waiting:
        draw()


def plane(sketch: Sketch, x: float, y: float, heading: float, span: float, colour: str = "white") -> Drawing:
    """An airliner from above, its nose towards `heading`."""
    wings = [placed(shape, x, y, heading, span, span) for shape in (_WING, _WING * _MIRROR)]
    tail = [placed(shape, x, y, heading, span, span) for shape in (_TAILPLANE, _TAILPLANE * _MIRROR)]
    engines = [placed(shape, x, y, heading, span, span) for shape in (_ENGINE, _ENGINE * _MIRROR)]
    fuselage = placed(_FUSELAGE, x, y, heading, span, span)
    for part in (*wings, *tail, fuselage):
        sketch.canvas.shadow(part, 0.16 * span)
    sketch.note("plane", np.concatenate([fuselage, *wings]), colour)
    body, livery = sketch.paint_of(colour, 6), sketch.paint_of(sketch.choose(("blue", "red", "green", "black")))
    spine = placed(np.array([(0.44, 0.0), (-0.4, 0.0)]), x, y, heading, span, span)
    fin = placed(np.array([(-0.36, 0.0), (-0.54, 0.0)]), x, y, heading, span, span)

    def draw() -> None:
        for part in engines:
            sketch.canvas.polygon(part, shaded(body, 0.62))
        for part in (*wings, *tail):
            sketch.canvas.polygon(part, shaded(body, 0.88))
        sketch.canvas.polygon(fuselage, shaded(body, 0.94))
        sketch.canvas.line(spine, 0.05 * span, shaded(body, 1.1))
        sketch.canvas.line(fin, 0.03 * span, livery)

    return draw


def boat(sketch: Sketch, x: float, y: float, heading: float, length: float, colour: str) -> Drawing:
    """A motor boat from above, its bow towards `heading`."""
    hull = placed(_HULL, x, y, heading, length, length)
    cabin = placed(_HULL * (0.5, 0.6) - (0.06, 0.0), x, y, heading, length, length)
    sketch.canvas.shadow(hull, 0.12 * length)
    sketch.note("boat", hull, colour)
    body = sketch.paint_of(colour, 8)

    def draw() -> None:
        sketch.canvas.polygon(hull, body)
        sketch.canvas.polygon(cabin, shaded(body, 0.72) if colour == "white" else (214, 212, 206))

    return draw


def tank(sketch: Sketch, x: float, y: float, radius: float, colour: str) -> Drawing:
    """A round storage tank: a lit wall, a roof, and on some a floating roof that lies deeper, in shade."""
    outline = disc(x, y, radius, 32)
    sketch.canvas.shadow(outline, radius * sketch.uniform(0.7, 1.1))
    sketch.note("storage tank", outline, colour)
    body = sketch.paint_of(colour, 8)
    dx, dy = sketch.frame.shadow_m(1.0)
    sun = math.atan2(dy, dx)
    floating = sketch.chance(0.35)

    def draw() -> None:
        sketch.canvas.polygon(outline, shaded(body, 0.8))
        sketch.canvas.polygon(disc(x, y, radius * 0.93, 32), body)
        if floating:
            sketch.canvas.polygon(disc(x, y, radius * 0.84, 32), shaded(body, 0.84))
            crescent = sector(x, y, radius * 0.84, sun + math.pi / 2, sun + 1.5 * math.pi)
            inner = sector(
                x + 0.5 * radius * math.cos(sun), y + 0.5 * radius * math.sin(sun), radius * 0.98, sun + 2.1, sun + 4.18
            )
            sketch.canvas.polygon(np.concatenate([crescent, inner[::-1]]), shaded(body, 0.5))
        else:
            lit_half = sector(x, y, radius * 0.9, sun + math.pi / 2, sun + 1.5 * math.pi)
            sketch.canvas.polygon(lit_half, shaded(body, 1.06))
        rim = np.concatenate([outline, outline[:1]])
        sketch.canvas.line(rim, radius * 0.05, shaded(body, 0.66))
        sketch.canvas.polygon(disc(x, y, radius * 0.08, 10), shaded(body, 0.6))

    return draw


def car(sketch: Sketch, x: float, y: float, heading: float, colour: str) -> Drawing:
    """A car from above."""
    outline = rectangle(x, y, 4.7, 2.0, heading)
    sketch.canvas.shadow(outline, 1.5)
    sketch.note("car", outline, colour)
    body = sketch.paint_of(colour)
    glass = placed(np.array([(0.24, -0.4), (0.24, 0.4), (0.06, 0.34), (0.06, -0.34)]), x, y, heading, 4.7, 2.0)
    rear = placed(np.array([(-0.34, -0.38), (-0.34, 0.38), (-0.24, 0.34), (-0.24, -0.34)]), x, y, heading, 4.7, 2.0)

    def draw() -> None:
        sketch.canvas.polygon(outline, body)
        for window in (glass, rear):
            sketch.canvas.polygon(window, (38, 44, 52))

    return draw


def house(sketch: Sketch, x: float, y: float, heading: float, length: float, width: float, colour: str) -> Drawing:
    """A house with a gable roof: one slope in the sun, the other in shade."""
    outline = rectangle(x, y, length, width, heading)
    sketch.canvas.shadow(outline, 6.0)
    sketch.note("house", outline, colour)
    roof = sketch.paint_of(colour, 16)
    dx, dy = sketch.frame.shadow_m(1.0)
    turned_away = dx * -math.sin(heading) + dy * math.cos(heading) > 0
    upper, lower = (1.1, 0.74) if turned_away else (0.74, 1.1)
    halves = [
        placed(np.array([(-0.5, side * 0.5), (0.5, side * 0.5), (0.5, 0.0), (-0.5, 0.0)]), x, y, heading, length, width)
        for side in (-1, 1)
    ]
    ridge = placed(np.array([(-0.5, 0.0), (0.5, 0.0)]), x, y, heading, length, width)

    def draw() -> None:
        for half, light in zip(halves, (upper, lower), strict=True):
            sketch.canvas.polygon(half, shaded(roof, light))
        sketch.canvas.line(ridge, 0.4, shaded(roof, 1.3))

    return draw


def building(sketch: Sketch, outline: Points, name: str, height_m: float, colour: str) -> Drawing:
    """A flat-roofed building with a parapet and some plant on its roof, noted as `name`."""
    sketch.canvas.shadow(outline, height_m)
    sketch.note(name, outline, colour)
    roof = sketch.paint_of(colour, 10)
    middle = outline.mean(axis=0)
    plant = []
    for corner in outline:
        x, y = (middle + (corner - middle) * sketch.uniform(0.2, 0.7)).tolist()
        plant.append(rectangle(x, y, 7.0, 4.5, sketch.uniform(0, math.pi)))

    def draw() -> None:
        sketch.canvas.polygon(outline, shaded(roof, 0.86))
        sketch.canvas.polygon(middle + (outline - middle) * 0.94, roof)
        for box in plant:
            sketch.canvas.polygon(box, shaded(roof, 0.72))

    return draw


def tree(sketch: Sketch, x: float, y: float, radius: float) -> Drawing:
    """One tree: a dark crown, lighter towards the sun."""
    outline = disc(x, y, radius, 12)
    sketch.canvas.shadow(outline, radius * 1.4)
    sketch.note("tree", outline, "green")
    dx, dy = sketch.frame.shadow_m(radius * 0.35)
    dark, mid, light = sketch.palette.woods[1:]
    factor = sketch.uniform(0.9, 1.15)

    def draw() -> None:
        sketch.canvas.polygon(outline, shaded(dark, factor))
        sketch.canvas.polygon(disc(x - dx * 0.5, y - dy * 0.5, radius * 0.74, 10), shaded(mid, factor * 0.9))
        sketch.canvas.polygon(disc(x - dx, y - dy, radius * 0.36, 8), shaded(light, factor * 0.9))

    return draw
