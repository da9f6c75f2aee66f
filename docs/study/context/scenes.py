"""Draw the controlled set of section (g): captions that need the whole image beside captions that need one spot of it.

    python docs/study/context/scenes.py FOLDER --count 9000 --seed 0
    cmpagl prepare folder FOLDER --name context

Each 64 px scene has four captions, two of a kind that compares things far apart (side, distance, inside or outside,
count) and two that look at one spot (colour, shape, ground). Each caption is one of a few that differ in nothing but
the word in question, so chance is known.
"""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZE_PX = 64
_FINE = 4  # drawn so many times larger, then averaged
_SPLITS = ("train",) * 26 + ("val",) + ("test",) * 3

SIDES = ("north", "east", "south", "west")
_UP = {"north": (0, -1), "east": (1, 0), "south": (0, 1), "west": (-1, 0)}
GROUNDS = {"grass": (92, 118, 66), "sand": (196, 176, 130), "soil": (120, 88, 64), "forest": (42, 66, 38)}
COLOURS = {"red": (190, 50, 44), "white": (240, 240, 236), "blue": (50, 92, 190), "yellow": (226, 190, 60)}
_WATER, _ASPHALT, _ROOF, _CAR = (30, 58, 84), (70, 70, 74), (214, 210, 204), (230, 120, 40)
_NUMBERS = ("one", "two", "three", "four")


@dataclass(frozen=True)
class Kind:
    """Captions that differ in one word. context: whether that word needs things far apart in the image."""

    context: bool
    captions: tuple[str, ...]


KINDS: dict[str, Kind] = {
    "side": Kind(True, tuple(f"the tank lies {side} of the pond" for side in SIDES)),
    "distance": Kind(True, ("the tank is near the pond", "the tank is far from the pond")),
    "ring": Kind(True, ("the house is inside the ring road", "the house is outside the ring road")),
    "count": Kind(True, tuple(f"the number of cars is {number}" for number in _NUMBERS)),
    "coast": Kind(True, tuple(f"the sea lies in the {side}" for side in SIDES)),
    "shore": Kind(True, ("the boat is near the shore", "the boat is far from the shore")),
    "ground": Kind(False, tuple(f"the ground is {ground}" for ground in GROUNDS)),
    "tank colour": Kind(False, tuple(f"the tank is {colour}" for colour in COLOURS)),
    "house shape": Kind(False, ("the house is square", "the house is round")),
    "boat colour": Kind(False, tuple(f"the boat is {colour}" for colour in COLOURS)),
    "beach": Kind(False, ("a beach runs along the coast", "rocks run along the coast")),
}
KIND_OF = {caption: name for name, kind in KINDS.items() for caption in kind.captions}


class Canvas:
    """A scene in the making; everything in pixels of the finished image."""

    def __init__(self, rng: np.random.Generator, ground: str) -> None:
        self.rng = rng
        side = SIZE_PX * _FINE
        self.image = Image.fromarray(_textured(rng, ground, side))
        self.pen = ImageDraw.Draw(self.image)

    def disc(self, x: float, y: float, radius: float, colour: tuple[int, int, int], width: float | None = None) -> None:
        box = [_FINE * value for value in (x - radius, y - radius, x + radius, y + radius)]
        if width is None:
            self.pen.ellipse(box, fill=colour)
        else:
            self.pen.ellipse(box, outline=colour, width=round(width * _FINE))

    def box(self, x: float, y: float, width: float, height: float, angle: float, colour: tuple[int, int, int]) -> None:
        cos, sin = math.cos(angle), math.sin(angle)
        corners = [
            (-width / 2, -height / 2),
            (width / 2, -height / 2),
            (width / 2, height / 2),
            (-width / 2, height / 2),
        ]
        turned = [(_FINE * (x + a * cos - b * sin), _FINE * (y + a * sin + b * cos)) for a, b in corners]
        self.pen.polygon(turned, fill=colour)

    def shade(self, colour: tuple[int, int, int], spread: int = 14) -> tuple[int, int, int]:
        light = int(self.rng.integers(-spread, spread + 1))
        red, green, blue = (int(np.clip(value + light, 0, 255)) for value in colour)
        return red, green, blue

    def finished(self) -> Image.Image:
        small = self.image.resize((SIZE_PX, SIZE_PX), Image.Resampling.BOX)
        noise = self.rng.normal(0, 5, (SIZE_PX, SIZE_PX, 3))
        light = self.rng.uniform(0.85, 1.12)
        return Image.fromarray((np.asarray(small, dtype=float) * light + noise).clip(0, 255).astype(np.uint8))


def tank_and_pond(rng: np.random.Generator) -> tuple[Image.Image, tuple[str, ...]]:
    """A tank and a pond, near or far apart, on a line that runs roughly north, east, south or west."""
    ground, colour, side = _pick(rng, GROUNDS), _pick(rng, COLOURS), _pick(rng, SIDES)
    far = bool(rng.integers(2))
    canvas = Canvas(rng, ground)
    apart = rng.uniform(32, 42) if far else rng.uniform(13, 17)
    across, (up_x, up_y) = math.radians(rng.uniform(-18, 18)), _UP[side]
    dx = apart * (up_x * math.cos(across) - up_y * math.sin(across))
    dy = apart * (up_x * math.sin(across) + up_y * math.cos(across))
    low_x, high_x = 8 + abs(dx) / 2, SIZE_PX - 8 - abs(dx) / 2
    low_y, high_y = 8 + abs(dy) / 2, SIZE_PX - 8 - abs(dy) / 2
    x, y = rng.uniform(low_x, high_x), rng.uniform(low_y, high_y)
    for _ in range(4):
        canvas.disc(x - dx / 2 + rng.uniform(-2, 2), y - dy / 2 + rng.uniform(-2, 2), rng.uniform(3.5, 5), _WATER)
    canvas.disc(x + dx / 2 + 1, y + dy / 2 + 1, 4.5, (40, 40, 36))
    canvas.disc(x + dx / 2, y + dy / 2, 4.5, canvas.shade(COLOURS[colour]))
    captions = (
        f"the ground is {ground}",
        f"the tank is {colour}",
        f"the tank lies {side} of the pond",
        KINDS["distance"].captions[int(far)],
    )
    return canvas.finished(), captions


def ring_road(rng: np.random.Generator) -> tuple[Image.Image, tuple[str, ...]]:
    """A ring road of any place and size with a house inside or outside, and cars all over the image."""
    ground, square, inside = _pick(rng, GROUNDS), bool(rng.integers(2)), bool(rng.integers(2))
    number = int(rng.integers(1, 5))
    canvas = Canvas(rng, ground)
    radius = rng.uniform(14, 21)
    middle = rng.uniform(radius - 2, SIZE_PX + 2 - radius, 2)
    while True:
        house = rng.uniform(6, SIZE_PX - 6, 2)
        distance = float(np.hypot(*(house - middle)))
        if distance < radius - 7 if inside else distance > radius + 7:
            break
    canvas.disc(*middle, radius + 1.5, _ASPHALT, width=3)
    if square:
        canvas.box(*house, 8, 8, 0.0, canvas.shade(_ROOF))
    else:
        canvas.disc(*house, 4.4, canvas.shade(_ROOF))
    parked = [house]
    while len(parked) <= number:
        car = rng.uniform(4, SIZE_PX - 4, 2)
        if min(float(np.hypot(*(car - other))) for other in parked) > 9:
            parked.append(car)
            canvas.box(*car, 5, 3, rng.uniform(0, math.pi), canvas.shade(_CAR))
    captions = (
        f"the ground is {ground}",
        KINDS["house shape"].captions[int(not square)],
        KINDS["ring"].captions[int(not inside)],
        f"the number of cars is {_NUMBERS[number - 1]}",
    )
    return canvas.finished(), captions


def coast(rng: np.random.Generator) -> tuple[Image.Image, tuple[str, ...]]:
    """The sea on one side, a boat near its shore or far from it, a beach or rocks along it."""
    ground, colour, side = _pick(rng, ("grass", "soil", "forest")), _pick(rng, COLOURS), _pick(rng, SIDES)
    beach, far = bool(rng.integers(2)), bool(rng.integers(2))
    canvas = Canvas(rng, ground)
    shore = SIZE_PX * rng.uniform(0.40, 0.55)  # from the sea's side of the image
    along = np.linspace(-10, SIZE_PX + 10, 40)
    waves = sum(rng.uniform(0.5, 2.0) * np.sin(along / rng.uniform(5, 14) + rng.uniform(0, 6)) for _ in range(3))
    strip = (214, 196, 150) if beach else (96, 96, 98)
    for depth, colour_of in ((4.0, strip), (0.0, _WATER)):
        edge = [(float(a), float(shore + depth + w)) for a, w in zip(along, waves, strict=True)]
        outline = [_placed(side, a, b) for a, b in (*edge, (SIZE_PX + 10, -10), (-10, -10))]
        canvas.pen.polygon([(_FINE * a, _FINE * b) for a, b in outline], fill=colour_of)
    off = rng.uniform(17, shore - 3) if far and shore > 21 else rng.uniform(6, 9)
    far = off > 12
    x, y = _placed(side, rng.uniform(7, SIZE_PX - 7), shore - off)
    canvas.box(x, y, 8, 3.5, rng.uniform(0, math.pi), canvas.shade(COLOURS[colour]))
    captions = (
        f"the boat is {colour}",
        KINDS["beach"].captions[int(not beach)],
        f"the sea lies in the {side}",
        KINDS["shore"].captions[int(far)],
    )
    return canvas.finished(), captions


LAYOUTS = {"tank": tank_and_pond, "ring": ring_road, "coast": coast}


def draw(folder: Path, count: int, seed: int) -> None:
    """Draw the set into folder and its captions.csv; scene i depends on the seed and i alone."""
    rows = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        name = tuple(LAYOUTS)[number % len(LAYOUTS)]
        image, captions = LAYOUTS[name](rng)
        file = f"{name}_{number:05d}.png"
        image.save(folder / file, compress_level=1)
        split = _SPLITS[number // len(LAYOUTS) % len(_SPLITS)]
        rows += [(file, caption, split, name) for caption in captions]
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("file", "caption", "split", "scene"))
        writer.writerows(rows)


def _pick(rng: np.random.Generator, words: dict[str, tuple[int, int, int]] | tuple[str, ...]) -> str:
    return tuple(words)[int(rng.integers(len(words)))]


def _placed(side: str, along: float, depth: float) -> tuple[float, float]:
    """A point given along the shore and by its depth from the sea's edge of the image, in the image."""
    place = {
        "north": (along, depth),
        "south": (along, SIZE_PX - depth),
        "west": (depth, along),
        "east": (SIZE_PX - depth, along),
    }
    return place[side]


def _textured(rng: np.random.Generator, ground: str, side: int) -> np.ndarray:
    """A ground with a grain of its own: fine for sand, furrows for soil, crowns for forest."""
    cells = {"grass": 24, "sand": 60, "soil": 30, "forest": 18}[ground]
    field = rng.normal(0, 1, (cells, 1 if ground == "soil" else cells)) * {"sand": 9, "forest": 26}.get(ground, 16)
    if ground == "soil" and rng.integers(2):
        field = field.T
    grain = Image.fromarray(field.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    smooth = np.asarray(grain)
    return (np.array(GROUNDS[ground], dtype=float) + smooth[:, :, None]).clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=9000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    draw(given.folder, given.count, given.seed)
