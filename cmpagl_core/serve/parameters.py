"""The parameters of a search: one table, from which requests are read and the OpenAPI description is written.

Their names and spellings are those of `cmpagl retrieve`'s options.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cmpagl_core.errors import UsageError
from cmpagl_core.imagery.reading import AUTO, Reading
from cmpagl_core.search.filters import Filters, parse_filters
from cmpagl_core.search.query import (
    ImageQuery,
    ItemQuery,
    Leaf,
    Query,
    TextQuery,
    Weighted,
    added_together,
    split_weight,
)

MAX_HITS = 1000  # in one answer
DEEPEST = 100_000  # the last hit that can be asked for
DEEPEST_DIVERSE = 300
_MAX_PARTS, _MAX_CHARACTERS = 16, 4_000


@dataclass(frozen=True)
class Parameter:
    """One parameter of a query string. many: it may be given several times."""

    name: str
    kind: Literal["text", "int", "number", "bool"]
    about: str
    limits: Mapping[str, Any] = field(default_factory=dict)
    many: bool = False

    def read(self, texts: Sequence[str]) -> Any:
        """The value of what was given. Raises UsageError."""
        if self.many:
            if len(texts) > _MAX_PARTS:
                raise UsageError(f"{self.name} is given {len(texts)} times", hint=f"{_MAX_PARTS} are enough")
            return [self._one(text) for text in texts]
        if len(texts) > 1:
            raise UsageError(f"{self.name} is given {len(texts)} times", hint="give it once")
        return self._one(texts[0])

    def _one(self, text: str) -> Any:
        if len(text) > _MAX_CHARACTERS:
            raise UsageError(f"{self.name} has {len(text):,} characters", hint=f"{_MAX_CHARACTERS:,} are enough")
        if self.kind == "text":
            choices = self.limits.get("enum")
            if choices and text not in choices:
                raise UsageError(f"{self.name} is {text!r}", hint=f"write {' or '.join(choices)}")
            return text
        if self.kind == "bool":
            if text not in ("true", "false"):
                raise UsageError(f"{self.name} is {text!r}", hint="write true or false")
            return text == "true"
        return self._number(text)

    def _number(self, text: str) -> int | float:
        lowest, highest = self.limits.get("minimum", -math.inf), self.limits.get("maximum", math.inf)
        plain = text.isascii() and text.strip() == text and "_" not in text
        try:
            value = int(text) if self.kind == "int" else float(text)
        except ValueError:
            value = math.nan
        if not (plain and math.isfinite(value) and lowest <= value <= highest):
            kind = "a whole number" if self.kind == "int" else "a number"
            raise UsageError(f"{self.name} is {text!r}", hint=f"give {kind} from {lowest:g} to {highest:g}")
        return value


PARAMETERS = (
    Parameter("q", "text", "Text query."),
    Parameter("like", "text", "Images like this one of the index: its id, or its row from 0 on."),
    Parameter("plus", "text", "[W:]TEXT: a text that is added to the query, with weight W.", many=True),
    Parameter("minus", "text", "[W:]TEXT: a text that is subtracted.", many=True),
    Parameter("plus_like", "text", "[W:]ID: an image of the index that is added.", many=True),
    Parameter("minus_like", "text", "[W:]ID: an image of the index that is subtracted.", many=True),
    Parameter(
        "image_weight", "number", "Weight of the image of a POST, below 0 to subtract it.",
        {"minimum": -100, "maximum": 100},
    ),
    Parameter("bands", "text", "Bands of the image of a POST, as in --bands."),
    Parameter("stretch", "text", "Stretch of the image of a POST, as in --stretch."),
    Parameter("k", "int", "Number of hits.", {"minimum": 1, "maximum": MAX_HITS}),
    Parameter("offset", "int", "Hits that are left out before the first.", {"minimum": 0, "maximum": DEEPEST}),
    Parameter("bbox", "text", "W,S,E,N: only images that intersect this box, in degrees."),
    Parameter("near", "text", "LON,LAT: only images around this point; needs within."),
    Parameter("within", "text", "Radius of near to an image's centre: 500m or 5km."),
    Parameter("from", "text", "Only images from this day on: 2024, 2024-05 or 2024-05-31."),
    Parameter("to", "text", "Only images up to this day."),
    Parameter("path", "text", "Only files whose path matches this pattern."),
    Parameter("scene", "text", "Only files whose name matches this pattern."),
    Parameter("min_score", "number", "Only hits of at least this score.", {"minimum": -10, "maximum": 10}),
    Parameter("diverse", "bool", f"Hide near-duplicates and overlapping tiles; {DEEPEST_DIVERSE} hits at most."),
    Parameter("rerank", "text", "itm: re-score the nearest 32 with the ITM head.", {"enum": ["none", "itm"]}),
    Parameter("details", "bool", "Hits have their row, thumbnail and footprint (GeoJSON) too."),
)  # fmt: skip


@dataclass(frozen=True)
class SearchRequest:
    """A search as it was asked. query: what is looked for; filters, min_score, diverse: what may be found."""

    query: Query
    filters: Filters
    k: int = 20
    offset: int = 0
    min_score: float | None = None
    diverse: bool = False
    rerank: Literal["none", "itm"] = "none"
    details: bool = False


def read_parameters(pairs: Iterable[tuple[str, str]], known: Sequence[Parameter] = PARAMETERS) -> dict[str, Any]:
    """The values of a query string, by name. Raises UsageError for an unknown one, or one that cannot be read."""
    by_name = {parameter.name: parameter for parameter in known}
    given: dict[str, list[str]] = {}
    for name, text in pairs:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, 1)
            raise UsageError(f"there is no parameter {name[:100]!r}", hint=f"did you mean {near[0]}?" if near else None)
        given.setdefault(name, []).append(text)
    return {name: by_name[name].read(texts) for name, texts in given.items()}


def search_request(values: Mapping[str, Any], image: Path | None = None, inside: Path | None = None) -> SearchRequest:
    """What the values of `read_parameters` ask for. image, inside: files of a POST. Raises UsageError."""
    filters = parse_filters(
        values.get("bbox"), values.get("near"), values.get("within"), inside,
        values.get("from", ""), values.get("to", ""), values.get("path", ""), values.get("scene", ""),
    )  # fmt: skip
    own = {key: values[key] for key in ("k", "offset", "min_score", "diverse", "rerank", "details") if key in values}
    return SearchRequest(_query(values, image), filters, **own)


def _query(values: Mapping[str, Any], image: Path | None) -> Query:
    named = [name for name in ("q", "like") if name in values]
    if len(named) > 1:
        raise UsageError("q and like are two queries", hint="write plus_like to add an image to a text")
    about_images = [name for name in ("image_weight", "bands", "stretch") if name in values]
    if image is None and about_images:
        raise UsageError(f"{about_images[0]} is about the image of a POST", hint="leave it out")
    first: Leaf | None = None
    if "q" in values:
        first = TextQuery(values["q"])
    elif "like" in values:
        first = ItemQuery(values["like"])
    more: list[Weighted] = []
    if image is not None:
        query = ImageQuery(image, _reading(values))
        weight = values.get("image_weight", 1.0)
        if weight == 0:
            raise UsageError("image_weight is 0", hint="leave the image out")
        if first is None and weight == 1.0:
            first = query
        else:
            more.append(Weighted(query, weight))
    more += [_part(text, sign, False) for name, sign in _SIGNS for text in values.get(name, ())]
    more += [_part(text, sign, True) for name, sign in _SIGNS for text in values.get(f"{name}_like", ())]
    if first is None and not any(part.weight > 0 for part in more):
        raise UsageError("no query is given", hint="give q, like, plus or plus_like, or POST an image")
    return added_together(first, more)


_SIGNS = (("plus", 1.0), ("minus", -1.0))


def _part(text: str, sign: float, is_item: bool) -> Weighted:
    weight, rest = split_weight(text)
    return Weighted(ItemQuery(rest) if is_item else TextQuery(rest), sign * weight)


def _reading(values: Mapping[str, Any]) -> Reading | None:
    if "bands" not in values and "stretch" not in values:
        return None
    return Reading(values.get("bands", AUTO), values.get("stretch", AUTO))
