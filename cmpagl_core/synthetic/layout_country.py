"""Rivers with bridges, farmland and forest (ours)."""

from __future__ import annotations

import math

import numpy as np

from cmpagl_core.synthetic.borders import border, scatter_trees
from cmpagl_core.synthetic.geometry import Points, band, meander, rectangle, shifted, straight
from cmpagl_core.synthetic.grounds import farmland, forest, lawn, river, road
from cmpagl_core.synthetic.layout_parking import CAR_PAINTS
from cmpagl_core.synthetic.sketch import Sketch, shaded
from cmpagl_core.synthetic.things import car, stand

_DOWN = math.pi / 2


def river_with_bridges(sketch: Sketch) -> None:
    """A river under one or two bridges; forest, farmland or houses on its banks."""
    lawn(sketch)
    width = sketch.half_m * sketch.uniform(0.28, 0.5)
    line = meander(sketch.rng, sketch.reach_m * 1.1, sketch.half_m * sketch.uniform(0.05, 0.22))
    above, below = sketch.choose(
        (("forest", "forest"), ("farmland", "farmland"), ("forest", "farmland"), ("house", ""), ("", ""))
    )
    _banks(sketch, above, below, line, width)
    river(sketch, line, width)
    sketch.occupy(band(line, width * 1.15))
    for x in sketch.choose(((-0.5, 0.45), (0.0,), (0.2,), (-0.25,))):
        _bridge(sketch, line, x * sketch.half_m, width)
    stand(sketch, scatter_trees(sketch, sketch.whole(10, 60) if "forest" not in (above, below) else 0, 4.5))
    sketch.relate("bridge", "over", "river")
    sketch.relate("road", "across", "river")


def farmland_alone(sketch: Sketch) -> None:
    """Nothing but pieces of farmland, sometimes with a forest beside them."""
    lawn(sketch)
    farmland(sketch, sketch.half_m * sketch.uniform(0.4, 0.75))
    if sketch.chance(0.35):
        border(sketch, "forest", _DOWN, sketch.half_m * sketch.uniform(0.25, 0.5))
        sketch.relate("farmland", "beside", "forest")


def farmland_with_a_line(sketch: Sketch) -> None:
    """Farmland on both sides of a road or a river."""
    lawn(sketch)
    farmland(sketch, sketch.half_m * sketch.uniform(0.4, 0.7))
    if sketch.chance(0.6):
        line = straight(0, sketch.half_m * sketch.uniform(-0.3, 0.3), 0.0, sketch.reach_m, 8)
        road(sketch, line, 8 * sketch.frame.metres_per_px)
        sketch.relate("road", "between", "farmland")
        return
    line = meander(sketch.rng, sketch.reach_m * 1.1, sketch.half_m * 0.3)
    river(sketch, line, sketch.half_m * sketch.uniform(0.14, 0.26))
    sketch.relate("river", "between", "farmland")


def forest_with_a_line(sketch: Sketch) -> None:
    """Dense forest; often a road or a river runs through it."""
    lawn(sketch)
    forest(sketch, rectangle(0, 0, 4 * sketch.reach_m, 4 * sketch.reach_m))
    through = sketch.choose(("road", "river", ""))
    line = meander(sketch.rng, sketch.reach_m * 1.1, sketch.half_m * sketch.uniform(0.05, 0.35))
    if through == "road":
        road(sketch, line, 9.0)
        sketch.relate("road", "through", "forest")
    elif through == "river":
        river(sketch, line, sketch.half_m * sketch.uniform(0.16, 0.4))
        sketch.relate("river", "through", "forest")


def _banks(sketch: Sketch, above: str, below: str, line: Points, width: float) -> None:
    reach = sketch.reach_m
    for name, side in ((above, -1), (below, 1)):
        far = np.array([(reach * 1.2, side * reach * 2), (-reach * 1.2, side * reach * 2)])
        outline = np.concatenate([shifted(line, side * width * 0.56), far])
        if name == "forest":
            forest(sketch, outline)
        elif name == "farmland":
            farmland(sketch, sketch.half_m * 0.42, keep=outline)
        elif name == "house":
            swing = float(np.abs(line[:, 1]).max())
            border(sketch, "house", side * _DOWN, swing + width * 0.62)
        if name:
            sketch.occupy(outline)
    if above == below and above:
        sketch.relate("river", "between", above)
    else:
        for name in (above, below):
            sketch.relate("river", "beside" if name == "house" else "near", name)


def _bridge(sketch: Sketch, line: Points, x: float, width: float) -> None:
    """A road across the river at x, its deck over the water lighter and with a shadow."""
    y = float(np.interp(x, line[:, 0], line[:, 1]))
    slope = float(np.interp(x + 4, line[:, 0], line[:, 1]) - np.interp(x - 4, line[:, 0], line[:, 1])) / 8
    heading = math.atan2(slope, 1.0) + _DOWN
    lanes = max(11.0, sketch.half_m * 0.09)
    road(sketch, straight(x, y, heading, sketch.reach_m * 1.4, 8), lanes)
    deck = rectangle(x, y, width * 1.22, lanes * 1.3, heading)
    sketch.canvas.shadow(deck, 7.0)
    sketch.canvas.cast()
    sketch.canvas.polygon(deck, sketch.palette.concrete[2])
    inner = straight(x, y, heading, width * 0.62)
    sketch.canvas.polygon(band(inner, lanes * 0.94), shaded(sketch.palette.asphalt[2], 1.1))
    sketch.canvas.line(inner, 0.6, (222, 222, 216))
    sketch.note("bridge", deck)
    spots = [straight(x, y, heading, width * share)[1].tolist() for share in (-0.4, 0.1, 0.5) if sketch.chance(0.3)]
    cars = [car(sketch, spot[0], spot[1], heading, sketch.choose(CAR_PAINTS)) for spot in spots]
    if cars:
        sketch.relate("car", "on", "bridge")
    stand(sketch, cars)
