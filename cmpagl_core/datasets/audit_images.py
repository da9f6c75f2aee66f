"""Audits images: odd sizes, identical files and near-duplicates, inside splits, across them, and across data sets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.datasets.audited import AuditedSet
from cmpagl_core.datasets.findings import MOST_ITEMS, Check, Finding, Item
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.near_duplicates import NearPair, near_pairs
from cmpagl_core.progress import Progress

FeaturesOf = Callable[[Sequence[ImageRef]], NDArray[np.float32]]
"""Unit features [N, D] of images: a model's."""

LEAST_COSINE = 0.9  # RSICD's pairs of one place have 0.95 and more with a small run
_LEAST_SIDE_PX, _MOST_ELONGATED = 32, 4
_COMMON = 0.5  # share of images of one size, from which others are odd
_ORDER = {"test": 0, "val": 1, "": 2, "train": 3}


def size_findings(audited: AuditedSet) -> list[Finding]:
    """Images of another size than most, and tiny or narrow ones."""
    counts = Counter(audited.sizes)
    usual = {size for size, count in counts.items() if count >= _COMMON * len(audited)}
    findings = []
    for split in audited.split_names:
        rows = audited.rows(split)
        odd = [row for row in rows if _is_odd(audited.sizes[row], usual)]
        items = [Item(audited.image_ids[row], "{} x {}".format(*audited.sizes[row])) for row in odd]
        if items:
            findings.append(Finding.of_items("odd sizes", split or "all", items, len(rows)))
    return findings


def twin_findings(
    sets: Sequence[AuditedSet], near_bits: int | None, features_of: FeaturesOf | None, progress: Progress
) -> list[Finding]:
    """Identical and near-duplicate images of the first set, and between it and the second if there is one.

    near_bits: as `most_bits` of `near_pairs`; None looks for identical ones alone. features_of: confirms near ones.
    Raises what `near_pairs` and the model raise.
    """
    places = [_Place(number, split) for number, one in enumerate(sets) for split in one.splits]
    contents = [content for one in sets for content in one.content]
    within = len(sets[0])
    gathered = _Gathered(sets, places)
    gathered.add_identical(contents, within)
    if near_bits is not None:
        images = [image for one in sets for image in one.images]
        pairs = near_pairs(images, contents, within, progress, near_bits)
        gathered.add_near(pairs, _cosines(images, pairs, features_of))
    return gathered.findings()


@dataclass(frozen=True)
class _Place:
    """A split of one of the sets."""

    number: int
    split: str

    @property
    def order(self) -> tuple[int, int]:
        """What is tested comes first."""
        return _ORDER[self.split], self.number


@dataclass
class _Twins:
    """The images of one place that have a twin in another."""

    rows: set[int] = field(default_factory=set)
    items: list[Item] = field(default_factory=list)


class _Gathered:
    """Twins by check and by pair of places."""

    def __init__(self, sets: Sequence[AuditedSet], places: Sequence[_Place]) -> None:
        self._sets, self._places = sets, places
        self._ids = [image_id for one in sets for image_id in one.image_ids]
        self._sizes = Counter(places)
        self._found: dict[tuple[Check, _Place, _Place], _Twins] = defaultdict(_Twins)

    def add_identical(self, contents: Sequence[str], within: int) -> None:
        """contents: equal if the pixels are."""
        groups: dict[str, list[int]] = defaultdict(list)
        for row, content in enumerate(contents):
            groups[content].append(row)
        for rows in groups.values():
            if len(rows) > 1 and rows[0] < within:
                self._add_group(rows)

    def _add_group(self, rows: Sequence[int]) -> None:
        by_place: dict[_Place, list[int]] = defaultdict(list)
        for row in rows:
            by_place[self._places[row]].append(row)
        places = sorted(by_place, key=lambda place: place.order)
        for place in places:
            first, *others = by_place[place]
            if others and place.number == 0:
                self._add("identical images", by_place[place], [(first, other, Item("")) for other in others])
        for one, other in combinations(places, 2):
            if 0 in (one.number, other.number):
                there = by_place[other][0]
                self._add("identical images", by_place[one], [(row, there, Item("")) for row in by_place[one]])

    def add_near(self, pairs: Iterable[NearPair], cosines: Sequence[float | None]) -> None:
        """Only those that the model confirms, if there is one."""
        for pair, cosine in zip(pairs, cosines, strict=True):
            if cosine is not None and cosine < LEAST_COSINE:
                continue
            first, second = self._places[pair.first], self._places[pair.second]
            ordered = pair if first.order <= second.order else pair.swapped()
            rows = (ordered.first, ordered.second)
            said = Item("", turn=ordered.turn, bits=pair.bits, alignment=pair.alignment, cosine=cosine)
            self._add("near-duplicate images", rows if first == second else rows[:1], [(*rows, said)])

    def _add(self, check: Check, counted: Iterable[int], pairs: Sequence[tuple[int, int, Item]]) -> None:
        """counted: the rows that have a twin. pairs: with what is known of each."""
        first, second, _ = pairs[0]
        twins = self._found[check, self._places[first], self._places[second]]
        twins.rows.update(counted)
        for one, other, said in pairs[: MOST_ITEMS - len(twins.items)]:
            twins.items.append(replace(said, image_id=self._ids[one], other=self._ids[other]))

    def findings(self) -> list[Finding]:
        """Of every check and pair of places, those within a place first."""
        found = []
        keys = sorted(self._found, key=lambda key: (key[0], key[1] != key[2], key[1].order, key[2].order))
        for check, one, other in keys:
            twins = self._found[check, one, other]
            where = self._name(one) if one == other else f"{self._name(one)} / {self._name(other)}"
            counts = len(twins.rows), self._sizes[one]
            found.append(Finding(check, where, *counts, tuple(twins.items), leak=one.split != other.split))
        return found

    def _name(self, place: _Place) -> str:
        if len(self._sets) == 1:
            return place.split or "all"
        return f"{self._sets[place.number].name} {place.split}".strip()


def _cosines(
    images: Sequence[ImageRef], pairs: Sequence[NearPair], features_of: FeaturesOf | None
) -> list[float | None]:
    if features_of is None or not pairs:
        return [None] * len(pairs)
    rows = sorted({row for pair in pairs for row in (pair.first, pair.second)})
    place = {row: number for number, row in enumerate(rows)}
    features = features_of([images[row].renamed(str(row)) for row in rows])
    return [float(features[place[pair.first]] @ features[place[pair.second]]) for pair in pairs]


def _is_odd(size: tuple[int, int], usual: set[tuple[int, int]]) -> bool:
    short, long = sorted(size)
    return bool(usual and size not in usual) or short < _LEAST_SIDE_PX or long > _MOST_ELONGATED * short
