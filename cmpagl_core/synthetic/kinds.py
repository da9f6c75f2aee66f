"""Which scenes there are, how often each comes, and which split a scene belongs to (ours)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cmpagl_core.synthetic import layout_airport, layout_built, layout_coast, layout_country, layout_sports
from cmpagl_core.synthetic.layout_parking import car_park
from cmpagl_core.synthetic.sketch import Sketch

Split = Literal["train", "val", "test"]

_SPLITS_OF_TEN: tuple[Split, ...] = ("train",) * 8 + ("val", "test")


@dataclass(frozen=True)
class SceneKind:
    """One combination of a main thing and what lies beside it. metres_per_px: at 224 px, before its jitter."""

    name: str
    scene: str
    metres_per_px: float
    draw: Callable[[Sketch], None]


_BY_THE_SEA = SceneKind("airport by the sea", "airport", 2.3, layout_airport.airport_by_the_sea)
_INLAND = SceneKind("airport inland", "airport", 2.3, layout_airport.airport_inland)
_HARBOUR = SceneKind("harbour", "harbour", 0.75, layout_coast.harbour)
_TANKS = SceneKind("storage tanks", "storagetanks", 0.75, layout_built.storage_tanks)
_RIVER = SceneKind("river with bridges", "river", 1.1, layout_country.river_with_bridges)

CYCLE: tuple[SceneKind, ...] = (
    _BY_THE_SEA,
    SceneKind("beach", "beach", 0.95, layout_coast.beach),
    SceneKind("baseball beside a road", "baseballfield", 0.8, layout_sports.baseball_beside_a_road),
    SceneKind("car park", "parking", 0.4, car_park),
    _RIVER,
    _TANKS,
    SceneKind("forest", "forest", 1.1, layout_country.forest_with_a_line),
    _INLAND,
    SceneKind("houses in rows", "residential", 0.6, layout_built.houses_in_rows),
    _BY_THE_SEA,
    _HARBOUR,
    SceneKind("tennis courts", "tenniscourt", 0.4, layout_sports.tennis_courts),
    SceneKind("farmland", "farmland", 2.0, layout_country.farmland_alone),
    SceneKind("storage tanks by the sea", "storagetanks", 0.75, layout_built.storage_tanks_by_the_sea),
    SceneKind("roads", "road", 0.6, layout_built.roads),
    _INLAND,
    SceneKind("baseball beside tennis", "baseballfield", 0.8, layout_sports.baseball_beside_tennis),
    _BY_THE_SEA,
    SceneKind("houses among trees", "residential", 0.6, layout_built.houses_among_trees),
    _HARBOUR,
    SceneKind("farmland with a road or river", "farmland", 2.0, layout_country.farmland_with_a_line),
    SceneKind("tennis beside a car park", "tenniscourt", 0.4, layout_sports.tennis_beside_car_park),
    _TANKS,
    SceneKind("beach with houses", "beach", 0.95, layout_coast.beach_with_houses),
    _RIVER,
)
"""The kinds come round in this order, so that any beginning of a set is mixed: 12 % are airports by the sea."""


def kind_of(number: int) -> SceneKind:
    """The kind of the scene with that number, whatever the seed."""
    return CYCLE[number % len(CYCLE)]


def scene_file(number: int) -> str:
    """Name of the image file of the scene with that number."""
    return f"{kind_of(number).scene}_{number:05d}.png"


def split_of(number: int, seed: int) -> Split:
    """The split of a scene: of every ten scenes of a kind, eight are train, one val and one test, drawn by the seed.

    It depends on the seed and the number alone, so a longer set only adds scenes.
    From 10 x len(CYCLE) scenes on, every kind occurs in every split.
    """
    kind = kind_of(number)
    slots = [place for place, other in enumerate(CYCLE) if other is kind]
    occurrence = number // len(CYCLE) * len(slots) + slots.index(number % len(CYCLE))
    rng = np.random.Generator(np.random.PCG64([seed, slots[0], occurrence // 10, 2]))
    return _SPLITS_OF_TEN[int(rng.permutation(10)[occurrence % 10])]
