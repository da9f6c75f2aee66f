"""Chooses a file's red, green and blue bands: by colour interpretation, by names, or by the user (ours)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmpagl_core.errors import DataError
from cmpagl_core.imagery.reading import PRESETS, Reading

# Red, green and blue of a sensor by the number of bands that people deliver its images with, in their usual order.
_PRESET_PLACES: dict[str, dict[int, tuple[int, int, int]]] = {
    "sentinel-2": {3: (1, 2, 3), 4: (3, 2, 1), 10: (3, 2, 1), 12: (4, 3, 2), 13: (4, 3, 2)},
    "landsat-8": {3: (1, 2, 3), 6: (3, 2, 1), 7: (4, 3, 2), 8: (4, 3, 2), 9: (4, 3, 2), 10: (4, 3, 2), 11: (4, 3, 2)},
    "planetscope": {3: (1, 2, 3), 4: (3, 2, 1), 5: (3, 2, 1), 8: (6, 4, 2)},
    "naip": {3: (1, 2, 3), 4: (1, 2, 3)},
}
_RED, _GREEN, _BLUE = (
    re.compile(rf"(?:.*[\s_:,-])?(?:{word})(?:[\s_:(,-].*)?", re.I) for word in ("red", "green", "blue")
)
_ANOTHER = re.compile(r"near|edge|infra|nir|swir|short|thermal|coastal|(?:red|green|blue)[\s_](?:i+|1|2)$", re.I)
_NUMBERED = re.compile(r"(?:.*[\s_:-])?B[ _]?(\d{1,2}A?)(?:[\s_:(,-].*)?", re.I)  # not "Band 4", which says nothing
_NIR_AND_MORE = {"8", "8A", "10", "11", "12"}  # who has one of these counts as Sentinel-2 and Landsat 8 do
_SHOWN = 16


@dataclass(frozen=True)
class Layout:
    """A file's description of its bands. colours: GDAL's names (red, gray, undefined, alpha). names: "" for none.

    pages: how many pages of one band the file has, in place of bands; 1 for all other files.
    """

    dtypes: tuple[str, ...]
    colours: tuple[str, ...]
    names: tuple[str, ...]
    pages: int = 1

    @property
    def count(self) -> int:
        return len(self.dtypes)

    def words(self) -> str:
        """The file's bands, in words."""
        kinds = " and ".join(Counter(self.dtypes))
        what = "pages of one band" if self.pages > 1 else f"band{'s' if self.count != 1 else ''}"
        named = [name for name in self.names if name]
        said = f", named {', '.join(named[:_SHOWN])}{', ...' if len(named) > _SHOWN else ''}" if named else ""
        return f"{self.count} {what} of {kinds} ({', '.join(self.colours[:_SHOWN])}{said})"


@dataclass(frozen=True)
class BandPlan:
    """bands: one (grey) or three (red, green, blue), from 1. by: what decided. alpha: what may be a mask, or 0."""

    bands: tuple[int, ...]
    by: str
    alpha: int = 0


def choose_bands(path: Path, layout: Layout, reading: Reading) -> BandPlan:
    """The bands to read of a file. Raises DataError, which says what the file has and which option decides."""
    alpha = layout.colours.index("alpha") + 1 if "alpha" in layout.colours else 0
    if reading.numbers:
        return BandPlan(_checked(path, layout, reading.numbers), "as asked", 0 if alpha in reading.numbers else alpha)
    if reading.preset:
        return BandPlan(_preset(path, layout, reading.preset), f"preset {reading.preset}", alpha)
    if layout.pages > 1:
        raise _unclear(path, layout, "which of them are red, green and blue, or what else they are")
    for by, found in (("colour interpretation", _by_colour(layout)), ("band names", _by_names(layout))):
        if found:
            return BandPlan(found, by, alpha)
    others = [band for band in range(1, layout.count + 1) if band != alpha]
    if len(others) == 1:
        return BandPlan((others[0],), "the only band", alpha)
    if len(others) == 3 and not any(layout.names):
        return BandPlan((others[0], others[1], others[2]), "three bands, in their order", alpha)
    raise _unclear(path, layout, "which are red, green and blue")


def _by_colour(layout: Layout) -> tuple[int, ...]:
    places = [[band for band, name in enumerate(layout.colours, start=1) if name == colour] for colour in _COLOURS]
    return tuple(bands[0] for bands in places) if all(len(bands) == 1 for bands in places) else ()


def _by_names(layout: Layout) -> tuple[int, ...]:
    words = [_matching(layout.names, pattern) for pattern in (_RED, _GREEN, _BLUE)]
    if all(len(bands) == 1 for bands in words):
        return tuple(bands[0] for bands in words)
    numbers = _numbers(layout.names)
    if numbers.keys() & _NIR_AND_MORE and {"2", "3", "4"} <= numbers.keys():
        return numbers["4"], numbers["3"], numbers["2"]
    return ()


def _matching(names: Sequence[str], pattern: re.Pattern[str]) -> list[int]:
    return [
        band
        for band, name in enumerate(names, start=1)
        if pattern.fullmatch(name.strip()) and not _ANOTHER.search(name.strip())
    ]


def _numbers(names: Sequence[str]) -> dict[str, int]:
    """{"4": the band that is named B4, B04 or SR_B4}; nothing for a number that stands twice."""
    found = [
        (match[1].upper().lstrip("0"), band)
        for band, name in enumerate(names, start=1)
        if (match := _NUMBERED.fullmatch(name.strip()))
    ]
    once = Counter(number for number, _ in found)
    return {number: band for number, band in found if once[number] == 1}


def _preset(path: Path, layout: Layout, preset: str) -> tuple[int, ...]:
    numbers = _numbers(layout.names)
    if preset in ("sentinel-2", "landsat-8") and {"2", "3", "4"} <= numbers.keys():
        return numbers["4"], numbers["3"], numbers["2"]
    named = _by_names(layout)
    if named:
        return named
    count = layout.count - layout.colours.count("alpha")
    places = _PRESET_PLACES[preset]
    if count not in places:
        usual = ", ".join(map(str, places))
        raise DataError(
            f"{path} has {layout.words()}, and images of {preset} have {usual}",
            hint="choose three bands, as in --bands 4,3,2",
        )
    return places[count]


def _checked(path: Path, layout: Layout, numbers: tuple[int, ...]) -> tuple[int, ...]:
    if max(numbers) > layout.count:
        raise DataError(
            f"{path} has {layout.words()}, so there is no band {max(numbers)}",
            hint="choose existing numbers with --bands",
        )
    return numbers


def _unclear(path: Path, layout: Layout, what: str) -> DataError:
    three = "3,2,1" if layout.count < 4 else "4,3,2"
    few = f"--bands {three}" if layout.count >= 3 else "--bands 1"
    return DataError(
        f"{path} has {layout.words()}, and it is unknown {what}", hint=f"pass {few} or a preset ({', '.join(PRESETS)})"
    )


_COLOURS = ("red", "green", "blue")
