"""What covers the ground: grass, sea and beach, forest, farmland, rivers, roads and paved places (ours)."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageChops

from cmpagl_core.synthetic.canvas import SUPERSAMPLE, soften
from cmpagl_core.synthetic.geometry import Points, band, beside, half_plane
from cmpagl_core.synthetic.sketch import Sketch, Surface, shaded
from cmpagl_core.synthetic.textures import Ramp, coloured, lit, window

_WATER: dict[str, Ramp] = {
    # from the shore (128) to the open (255); the lower half is never reached
    "blue": ((150, 190, 190), (150, 190, 190), (92, 154, 170), (40, 98, 134), (18, 58, 98)),
    "green": ((142, 166, 138), (142, 166, 138), (84, 128, 108), (40, 88, 82), (18, 54, 58)),
}
_RIVER: dict[str, Ramp] = {
    "green": ((34, 56, 44), (48, 74, 58), (66, 92, 74)),
    "blue": ((26, 54, 76), (40, 74, 98), (60, 96, 118)),
    "brown": ((112, 92, 62), (138, 114, 80), (160, 136, 102)),
}
_SAND: Ramp = ((164, 142, 104), (196, 176, 136), (224, 208, 174))
_CROPS: dict[str, tuple[Ramp, ...]] = {
    "green": (
        ((44, 76, 36), (66, 102, 50), (92, 126, 66)),
        ((66, 96, 48), (94, 126, 64), (122, 148, 84)),
        ((30, 62, 38), (46, 84, 52), (68, 106, 70)),
    ),
    "yellow": (((156, 136, 66), (184, 162, 86), (206, 186, 112)), ((170, 156, 92), (194, 180, 116), (212, 200, 142))),
    "brown": (((84, 64, 44), (110, 86, 62), (136, 110, 82)), ((100, 82, 64), (126, 106, 84), (150, 130, 106))),
}


def lawn(sketch: Sketch) -> None:
    """Grass over the whole image, the ground that everything else is laid on."""
    side, rng = sketch.canvas.side, sketch.rng
    level = Image.blend(window(rng, "plains", side), window(rng, "grain", side), 0.35)
    sketch.canvas.paint(coloured(level, sketch.palette.grass))


def paved(sketch: Sketch, outline: Points, surface: Surface) -> None:
    """Asphalt or concrete inside an outline."""
    cut = sketch.canvas.cut(outline)
    if cut is None:
        return
    mask, (left, top) = cut
    ground = sketch.surface(surface)
    width, height = mask.size
    sketch.canvas.image.paste(ground.crop((left, top, left + width, top + height)), (left, top), mask)


def sea(sketch: Sketch, angle: float, offset: float, wobble: float, beach_m: float = 0.0) -> Points:
    """Sea further than `offset` metres towards `angle`, with surf, and with a beach or a stone wall on its edge.

    Returns its outline; the first 48 points are the shore.
    """
    outline = half_plane(sketch.rng, angle, offset, sketch.reach_m, wobble)
    mask = sketch.canvas.mask(outline)
    if beach_m > 0:
        _beach(sketch, outline[:48], mask, beach_m)
    else:
        sketch.canvas.line(outline[:48], 9.0, (116, 114, 108))
        sketch.canvas.line(outline[:48], 3.0, (150, 148, 140))
    colour = sketch.choose(("blue", "blue", "green"))
    open_water(sketch, mask, colour, surf=beach_m > 0)
    sketch.note_mask("sea", mask, colour)
    return outline


def open_water(sketch: Sketch, mask: Image.Image, colour: str, surf: bool) -> None:
    """Paint sea where the mask says, lighter towards the shore, with waves and, on a beach, with surf."""
    side, rng = sketch.canvas.side, sketch.rng
    waves = window(rng, "waves", side)
    depth = soften(mask, sketch.uniform(28, 60) * SUPERSAMPLE)
    water = coloured(Image.blend(depth, window(rng, "plains", side), 0.14), _WATER[colour])
    ripples = lit(waves, 2, 3).point([round(128 + (level - 128) * 0.35) for level in range(256)])
    water = ImageChops.add(water, Image.merge("RGB", (ripples,) * 3), scale=1.0, offset=-128)
    sketch.canvas.paint(water, mask)
    if not surf:
        return
    near = soften(mask, 6.0 * SUPERSAMPLE)
    for centre, strength in ((150, 0.9), (178, 0.5)):
        foam = Image.blend(near, window(rng, "hills", side), 0.25)
        ridge = [round(max(0.0, 1 - abs(level - centre) / 14) * 255 * strength) for level in range(256)]
        sketch.canvas.paint(
            Image.new("RGB", (side, side), (236, 240, 240)), ImageChops.multiply(foam.point(ridge), mask)
        )


def forest(sketch: Sketch, outline: Points) -> None:
    """Dense trees inside an outline, with a ragged edge and a shadow."""
    side, rng = sketch.canvas.side, sketch.rng
    crowns = window(rng, "crowns", side, max(0.5, min(1.6, 1.1 / sketch.frame.metres_per_px)))
    sun = sketch.frame.sun_heading
    relief = lit(crowns, round(4 * math.cos(sun)), round(4 * math.sin(sun)))
    level = Image.blend(Image.blend(crowns, relief, 0.6), window(rng, "plains", side), 0.25)
    ragged = Image.blend(soften(sketch.canvas.mask(outline), 5.0 * SUPERSAMPLE), crowns, 0.3)
    mask = ragged.point([255 if level > 118 else 0 for level in range(256)])
    fall = (round(5 * math.cos(sun)), round(5 * math.sin(sun)))
    shadow = Image.new("L", mask.size, 0)
    shadow.paste(mask.point([round(level * 0.5) for level in range(256)]), fall)
    sketch.canvas.paint(Image.new("RGB", (side, side), (14, 20, 14)), shadow)
    sketch.canvas.paint(coloured(level, sketch.palette.woods), mask)
    sketch.note_mask("forest", mask, "green")


def farmland(sketch: Sketch, cell_m: float, keep: Points | None = None, heading: float = 0.0) -> None:
    """Pieces of farmland with furrows on a grid of about `cell_m`, over the whole image or inside `keep`."""
    canvas, rng = sketch.canvas, sketch.rng
    inside = None if keep is None else canvas.mask(keep)
    before = canvas.image.copy()
    colours = sketch.choose((("green",), ("green", "yellow"), ("green", "brown"), ("green", "yellow", "brown")))
    level = Image.blend(window(rng, "plains", canvas.side), window(rng, "grain", canvas.side), 0.3)
    crops = [(colour, ramp, coloured(level, ramp)) for colour in colours for ramp in _CROPS[colour]]
    gap = sketch.frame.metres_per_px
    cos, sin = math.cos(heading), math.sin(heading)
    y = -sketch.reach_m - sketch.uniform(0, cell_m)
    while y < sketch.reach_m:
        height = cell_m * sketch.uniform(0.6, 1.2)
        x = -sketch.reach_m - sketch.uniform(0, cell_m)
        while x < sketch.reach_m:
            width = cell_m * sketch.uniform(0.5, 1.5)
            corners = np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])
            turned = corners @ np.array([(cos, sin), (-sin, cos)])
            colour, ramp, ground = crops[sketch.whole(0, len(crops) - 1)]
            _piece(sketch, turned, colour, ramp, ground, inside)
            x += width + sketch.uniform(1.0, 2.5) * gap
        y += height + sketch.uniform(1.0, 2.5) * gap
    if inside is not None:
        canvas.paint(before, ImageChops.invert(inside))


def river(sketch: Sketch, line: Points, width_m: float) -> None:
    """A river along a line, with wet banks."""
    side, rng = sketch.canvas.side, sketch.rng
    banks = soften(sketch.canvas.mask(band(line, width_m * 1.12)), 2.0 * SUPERSAMPLE)
    sketch.canvas.paint(Image.new("RGB", (side, side), (96, 88, 66)), banks.point([round(v * 0.7) for v in range(256)]))
    mask = sketch.canvas.mask(band(line, width_m))
    colour = sketch.choose(("green", "blue", "brown"))
    level = Image.blend(window(rng, "plains", side), window(rng, "waves", side), 0.4)
    sketch.canvas.paint(coloured(level, _RIVER[colour]), mask)
    sketch.note_mask("river", mask, colour)


def road(sketch: Sketch, line: Points, width_m: float) -> None:
    """A road along a line, with a verge, edge lines and a dashed middle."""
    sketch.canvas.polygon(band(line, width_m * 1.25), shaded(sketch.palette.concrete[0], 0.82))
    paved(sketch, band(line, width_m), "asphalt")
    white = (206, 206, 200)
    for offset in (-0.44, 0.44):
        sketch.canvas.line(beside(line, offset * width_m), 0.3, white)
    dashes(sketch, line, 6.0 * max(1.0, sketch.frame.metres_per_px), 0.35)
    sketch.note_stretch("road", band(line, width_m))


def dashes(sketch: Sketch, line: Points, length_m: float, width_m: float) -> None:
    """A broken white line along a line."""
    steps = np.sqrt((np.diff(line, axis=0) ** 2).sum(axis=1))
    along = np.concatenate([[0.0], np.cumsum(steps)])
    for start in np.arange(0.0, along[-1], 2 * length_m).tolist():
        spots = np.array([start, min(start + length_m, float(along[-1]))])
        piece = np.stack([np.interp(spots, along, line[:, axis]) for axis in range(2)], axis=1)
        sketch.canvas.line(piece, width_m, (222, 222, 216))


def _beach(sketch: Sketch, shore: Points, water: Image.Image, width_m: float) -> None:
    side, rng = sketch.canvas.side, sketch.rng
    strip = soften(sketch.canvas.mask(band(shore, 2 * width_m)), 2.5 * SUPERSAMPLE)
    edge = Image.blend(strip, window(rng, "hills", side), 0.2)
    mask = edge.point([max(0, min(255, (level - 96) * 8)) for level in range(256)])
    grain = Image.blend(window(rng, "plains", side), window(rng, "grain", side), 0.35)
    wet = soften(water, 10.0 * SUPERSAMPLE).point([255 - max(0, level - 60) // 2 for level in range(256)])
    sketch.canvas.paint(coloured(ImageChops.multiply(grain, wet), _SAND), mask)
    dry = ImageChops.subtract(mask, water)
    sketch.note_mask("beach", dry, "yellow")


def _piece(
    sketch: Sketch, corners: Points, colour: str, ramp: Ramp, ground: Image.Image, inside: Image.Image | None
) -> None:
    """One piece of farmland, with furrows along one side."""
    seen, kept = sketch.canvas.cut(corners), sketch.canvas.cut(corners, inside)
    if seen is None or kept is None:
        return
    mask, (left, top) = seen
    width, height = mask.size
    sketch.canvas.image.paste(ground.crop((left, top, left + width, top + height)), (left, top), mask)
    furrow = sketch.uniform(2.0, 4.0) * sketch.frame.metres_per_px
    a, b, c, d = corners if sketch.chance(0.5) else np.roll(corners, 1, axis=0)
    rows = int(math.dist(a.tolist(), d.tolist()) / furrow)
    dark = shaded(ramp[1], sketch.uniform(0.8, 0.96))
    for row in range(1, rows):
        share = row / rows
        sketch.canvas.line(np.stack([a + (d - a) * share, b + (c - b) * share]), furrow * 0.35, dark)
    if sketch.canvas.visible_share(kept[0]) >= 0.02:
        sketch.note_box("farmland", sketch.canvas.mask_box(*kept), colour)
