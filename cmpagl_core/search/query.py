"""Queries and hits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.imagery.image_ref import ImageRef

_MAX_CHARACTERS = 100_000


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
    """An example image."""

    path: Path


Query = TextQuery | ImageQuery


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
