"""A scene in the making: its random numbers, its canvas, its palette and the truth noted so far (ours)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from cmpagl_core.synthetic.canvas import Canvas, Frame
from cmpagl_core.synthetic.geometry import Points
from cmpagl_core.synthetic.textures import Colour, Ramp, coloured, window
from cmpagl_core.synthetic.truth import Box, Relation, SceneObject

PAINTS: dict[str, Colour] = {
    "white": (238, 238, 234),
    "grey": (146, 148, 150),
    "black": (44, 46, 52),
    "red": (172, 58, 46),
    "orange": (204, 118, 62),
    "brown": (104, 76, 58),
    "yellow": (214, 178, 74),
    "green": (58, 118, 74),
    "blue": (62, 102, 156),
}
_GRASS: tuple[Ramp, ...] = (
    ((38, 56, 30), (64, 88, 46), (96, 116, 66)),
    ((60, 72, 42), (90, 98, 60), (122, 124, 84)),
    ((88, 84, 54), (124, 116, 78), (156, 146, 106)),
    ((48, 66, 46), (76, 94, 66), (108, 122, 92)),
)
_WOODS: tuple[Ramp, ...] = (
    ((8, 18, 8), (26, 46, 22), (56, 84, 40), (104, 128, 72)),
    ((10, 18, 12), (32, 46, 28), (66, 80, 48), (118, 124, 84)),
    ((8, 20, 14), (22, 46, 32), (46, 78, 52), (88, 118, 84)),
)
_LEAST_BOX_PX = 3
_NEAR_SHARE = 0.3  # of the image's side: what is further apart isn't called near

T = TypeVar("T")
Surface = Literal["asphalt", "concrete"]


@dataclass(frozen=True)
class Palette:
    """The season's colours in one scene."""

    grass: Ramp
    woods: Ramp
    asphalt: Ramp
    concrete: Ramp


class Sketch:
    """What layouts draw on. rng is the scene's own, so that nothing else can move its numbers."""

    def __init__(self, rng: np.random.Generator, size_px: int, metres_per_px: float) -> None:
        self.rng = rng
        # The scale is chosen for 224 px; a smaller image shows the same ground more coarsely.
        scale = round(metres_per_px * float(rng.uniform(0.88, 1.14)) * 224 / size_px, 3)
        self.frame = Frame(
            size_px=size_px,
            metres_per_px=scale,
            heading=float(rng.uniform(0, 2 * math.pi)),
            sun_heading=float(rng.uniform(0, 2 * math.pi)),
            shadow_per_metre=float(rng.uniform(0.5, 1.1)),
        )
        self.canvas = Canvas(self.frame)
        self.palette = _palette(rng)
        self._ground = Image.new("L", (size_px, size_px), 0)
        self._occupied = ImageDraw.Draw(self._ground)
        self._surfaces: dict[Surface, Image.Image] = {}
        self._found: dict[tuple[str, str], list[Box]] = {}
        self._relations: list[Relation] = []

    @property
    def half_m(self) -> float:
        return self.frame.half_m

    @property
    def reach_m(self) -> float:
        return self.frame.reach_m

    def uniform(self, low: float, high: float) -> float:
        """A random number of the scene."""
        return float(self.rng.uniform(low, high))

    def whole(self, low: int, high: int) -> int:
        """A random whole number, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, share: float) -> bool:
        """True in so large a share of scenes."""
        return bool(self.rng.random() < share)

    def choose(self, items: tuple[T, ...]) -> T:
        """One of the items."""
        return items[int(self.rng.integers(0, len(items)))]

    def paint_of(self, colour: str, spread: int = 12) -> Colour:
        """A named colour, a little off at random."""
        red, green, blue = PAINTS[colour]
        light = int(self.rng.integers(-spread, spread + 1))
        return _clip(red + light), _clip(green + light), _clip(blue + light)

    def occupy(self, outline: Points) -> None:
        """Keep later trees and the like off this outline."""
        self._occupied.polygon([(x, y) for x, y in self.frame.pixels(outline).tolist()], fill=255)

    def free(self, outline: Points) -> bool:
        """Whether no corner nor the middle of an outline lies on something, nor outside the image."""
        spots = np.concatenate([outline, outline.mean(axis=0, keepdims=True)])
        if not self.frame.holds(spots, margin_px=1.0):
            return False
        return all(self._ground.getpixel((int(x), int(y))) == 0 for x, y in self.frame.pixels(spots).tolist())

    def surface(self, name: Surface) -> Image.Image:
        """Asphalt or concrete over the whole canvas, made once in a scene; layouts cut from it what they pave."""
        if name not in self._surfaces:
            side, ramps = self.canvas.side, {"asphalt": self.palette.asphalt, "concrete": self.palette.concrete}
            level = Image.blend(window(self.rng, "hills", side), window(self.rng, "grain", side), 0.4)
            self._surfaces[name] = coloured(level, ramps[name])
        return self._surfaces[name]

    def note(self, name: str, outline: Points, colour: str = "") -> None:
        """Write one thing into the truth with the box of its outline, if at least half of it is in the image."""
        if self.frame.inside_share(outline) >= 0.5:
            self.note_box(name, self.frame.box(outline), colour)

    def note_stretch(self, name: str, outline: Points) -> None:
        """Write what runs on beyond the image (a road, a runway) into the truth with the box of its visible part."""
        cut = self.canvas.cut(outline)
        if cut is not None:
            self.note_box(name, self.canvas.mask_box(*cut))

    def note_mask(self, name: str, mask: Image.Image, colour: str = "") -> None:
        """Write a ground into the truth with the box of its mask, if it covers at least 1 % of the image."""
        if self.canvas.visible_share(mask) >= 0.01:
            self.note_box(name, self.canvas.mask_box(mask), colour)

    def note_box(self, name: str, box: Box | None, colour: str = "") -> None:
        """Write one thing into the truth by its box; None and slivers at the edge are left out."""
        if box is not None and min(box[2] - box[0], box[3] - box[1]) >= _LEAST_BOX_PX:
            self._found.setdefault((name, colour), []).append(box)

    def relate(self, subject: str, word: str, target: str) -> None:
        """Write a relation into the truth; it is kept only if it holds in the finished image."""
        if (subject, word, target) not in self._relations:
            self._relations.append((subject, word, target))

    def objects(self) -> tuple[SceneObject, ...]:
        """Everything noted, by class and colour."""
        return tuple(
            SceneObject(name, len(boxes), colour, tuple(boxes)) for (name, colour), boxes in self._found.items()
        )

    def relations(self) -> tuple[Relation, ...]:
        """The relations whose classes are both in the image and, for near and beside, really close together."""
        return tuple(relation for relation in self._relations if self._holds(*relation))

    def _holds(self, subject: str, word: str, target: str) -> bool:
        ours, theirs = (
            [box for (name, _), boxes in self._found.items() if name == wanted for box in boxes]
            for wanted in (subject, target)
        )
        gaps = [_gap_px(one, other) for one in ours for other in theirs]
        return bool(gaps) and (word not in ("near", "beside") or min(gaps) <= _NEAR_SHARE * self.frame.size_px)


def shaded(colour: Colour, factor: float) -> Colour:
    """A colour made lighter (factor above 1) or darker."""
    red, green, blue = colour
    return _clip(red * factor), _clip(green * factor), _clip(blue * factor)


def _palette(rng: np.random.Generator) -> Palette:
    grey, warm = int(rng.integers(-14, 15)), int(rng.integers(-6, 7))
    asphalt = tuple((_clip(v + grey + warm), _clip(v + grey), _clip(v + grey - warm)) for v in (72, 92, 112))
    concrete = tuple((_clip(v + grey + warm), _clip(v + grey), _clip(v + grey - 8)) for v in (146, 166, 184))
    grass, woods = _GRASS[int(rng.integers(0, len(_GRASS)))], _WOODS[int(rng.integers(0, len(_WOODS)))]
    return Palette(grass, woods, asphalt, concrete)


def _gap_px(first: Box, second: Box) -> int:
    across = max(first[0] - second[2], second[0] - first[2], 0)
    down = max(first[1] - second[3], second[1] - first[3], 0)
    return max(across, down)


def _clip(value: float) -> int:
    return max(0, min(255, round(value)))
