"""Queries and hits."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.files import leads_to_file
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.reading import Reading

_MAX_CHARACTERS = 100_000
_MAX_WEIGHT = 100.0
_CANCELLED = 1e-4  # length of a sum that says nothing
_WEIGHT = re.compile(r"(\d+(?:\.\d+)?):(.*)", re.DOTALL)


@dataclass(frozen=True)
class TextQuery:
    """A text query. Raises UsageError for a blank one."""

    text: str

    def __post_init__(self) -> None:
        if not self.text.strip():
            hint = 'write a text, as in `cmpagl retrieve "airport near sea"`'
            raise UsageError("the query is blank", hint=hint)

    @property
    def words(self) -> str:
        """The text, truncated to what any model can read."""
        return self.text[:_MAX_CHARACTERS]


@dataclass(frozen=True)
class ImageQuery:
    """An example image. reading: which bands it is seen in; like the gallery's images if None."""

    path: Path
    reading: Reading | None = None


@dataclass(frozen=True)
class ItemQuery:
    """More like an image of the index: its id, or its row as a number."""

    item: str


@dataclass(frozen=True)
class Weighted:
    """One part of a combined query. weight: above 0 towards it, below 0 away from it."""

    query: TextQuery | ImageQuery | ItemQuery
    weight: float


@dataclass(frozen=True)
class CombinedQuery:
    """Several parts at once: their features are added by weight, and brought to unit length."""

    parts: tuple[Weighted, ...]


Leaf = TextQuery | ImageQuery | ItemQuery
Query = Leaf | CombinedQuery


def leaves(queries: Sequence[Query]) -> list[Leaf]:
    """The queries, and the parts of combined ones in their place."""
    found: list[Leaf] = []
    for query in queries:
        found += [part.query for part in query.parts] if isinstance(query, CombinedQuery) else [query]
    return found


def combined(query: CombinedQuery, features: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The sum of the parts' features [D] by weight, of unit length. Raises UsageError when they cancel out."""
    total = np.zeros(len(features[0]))
    for part, feature in zip(query.parts, features, strict=True):
        total += part.weight * feature.astype(np.float64)
    length = float(np.linalg.norm(total))
    if length < _CANCELLED:
        raise UsageError("the parts of the query cancel each other out", hint="change a weight")
    return np.asarray(total / length, dtype=np.float32)


def added_together(first: Leaf | None, more: Sequence[Weighted]) -> Query:
    """A query with what --plus and --minus add to it; alone, as it is. Raises UsageError where there is neither."""
    if first is not None and not more:
        return first
    whole = () if first is None else (Weighted(first, 1.0),)
    if not whole and all(part.weight < 0 for part in more):
        raise UsageError(
            "no query is given",
            hint='write `cmpagl retrieve "airport near sea"` or `cmpagl retrieve --image FILE`; --plus adds to it',
        )
    return CombinedQuery((*whole, *more))


def split_weight(text: str) -> tuple[float, str]:
    """The weight before a colon, 1 without one, and the rest. Raises UsageError for a weight that is not one."""
    found = _WEIGHT.match(text)
    weight, rest = (float(found[1]), found[2]) if found is not None else (1.0, text)
    if not 0 < weight <= _MAX_WEIGHT:
        raise UsageError(f"the weight in {text!r} is not between 0 and {_MAX_WEIGHT:g}", hint="write 2:storage tanks")
    return weight, rest


def parse_part(text: str, sign: float = 1.0) -> Weighted:
    """What --plus and --minus take: words or an image file, with a weight before a colon if it is not 1.

    A file is one that exists and has the suffix of an image; all else is words. Raises UsageError for none, or for a
    weight of 0.
    """
    weight, rest = split_weight(text)
    from cmpagl_core.imagery.images import IMAGE_SUFFIXES  # Pillow, which a text alone does without

    path = Path(rest)
    is_image = path.suffix.lower() in IMAGE_SUFFIXES and leads_to_file(path)
    return Weighted(ImageQuery(path) if is_image else TextQuery(rest), sign * weight)


def read_queries(path: Path) -> list[TextQuery]:
    """The queries of a file, one per line, or JSON lines {"text": ...} if the first line starts with a brace.

    Blank lines are skipped. Raises DataError for an unreadable file or one without queries, naming the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{path} has no queries", hint="write one per line")
    if not lines[0][1].startswith("{"):
        return [TextQuery(line) for _, line in lines]
    return [_json_query(f"{path}:{number}", line) for number, line in lines]


def _json_query(where: str, line: str) -> TextQuery:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON", hint='write {"text": "airport near sea"}') from error
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: there is no text", hint='write {"text": "airport near sea"}')
    return TextQuery(text)


@dataclass(frozen=True)
class Hit:
    """One retrieved image. rank counts from 1; score is the cosine with the query."""

    rank: int
    image: ImageRef
    score: float
    captions: tuple[str, ...]


@dataclass(frozen=True)
class CaptionHit:
    """One retrieved caption, and the ids of its images."""

    rank: int
    caption: str
    score: float
    image_ids: tuple[str, ...]
