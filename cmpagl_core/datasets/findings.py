"""Findings of an audit: what was found where, how often, and whether it is a leak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Check = Literal[
    "left out by prepare",
    "blank captions",
    "short captions",
    "long captions",
    "captions repeated for an image",
    "captions shared by images",
    "captions also in train",
    "odd sizes",
    "identical images",
    "near-duplicate images",
]

MOST_ITEMS = 1000  # of a finding that are listed; all are counted


@dataclass(frozen=True)
class Item:
    """One thing found. text: the caption, size or reason. other: the image's twin, and for near-duplicates how it is
    turned, differing bits of the hashes, alignment (0 to 1), and the cosine of their features if there is a model.
    """

    image_id: str
    text: str = ""
    other: str = ""
    turn: str = ""
    bits: int | None = None
    alignment: float | None = None
    cosine: float | None = None

    def document(self) -> dict[str, Any]:
        """What is known, for JSON."""
        return {key: value for key, value in asdict(self).items() if value not in ("", None)}


@dataclass(frozen=True)
class Finding:
    """found: of the `of` images or captions of a place. leak: what is tested may have been seen in training."""

    check: Check
    where: str
    found: int
    of: int
    items: tuple[Item, ...]
    leak: bool = False

    @classmethod
    def of_items(cls, check: Check, where: str, items: Sequence[Item], of: int, leak: bool = False) -> Finding:
        """A finding of which every item counts once."""
        return cls(check, where, len(items), of, tuple(items[:MOST_ITEMS]), leak)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "check": self.check,
            "where": self.where,
            "found": self.found,
            "of": self.of,
            "leak": self.leak,
            "items": [item.document() for item in self.items],
        }
