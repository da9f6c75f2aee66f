"""What can be asked, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cmpagl_core.errors import UsageError
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
