"""What can be asked, and what comes back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.imagery.image_ref import ImageRef

_MAX_CHARACTERS = 100_000


@dataclass(frozen=True)
class TextQuery:
    """What to look for, in words. Raises UsageError when there is none."""

    text: str

    def __post_init__(self) -> None:
        if not self.text.strip():
            hint = 'say what to look for, as in `cmpagl retrieve "airport near sea"`'
            raise UsageError("the query is blank", hint=hint)

    @property
    def words(self) -> str:
        """The text, without what no model reads to its end."""
        return self.text[:_MAX_CHARACTERS]


@dataclass(frozen=True)
class ImageQuery:
    """An image whose like is looked for."""

    path: Path


Query = TextQuery | ImageQuery


def read_queries(path: Path) -> list[TextQuery]:
    """The queries of a file, one a line; or of JSON lines {"text": ...}, where the first begins with a brace.

    Blank lines are left out. Raises DataError for a file that cannot be read or holds no query, naming the line.
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
        raise DataError(f"{path} holds no query", hint="write one a line")
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
    """One retrieved caption, and the ids of the images that it was written for."""

    rank: int
    caption: str
    score: float
    image_ids: tuple[str, ...]
