"""What an image is to everyone above: an identity, and where its pixels are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Window:
    """A rectangle of a larger image, in pixels from its upper left corner."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class ImageRef:
    """An image, from listing to hit. image_id: its name in a gallery. window: a piece of the file; None: all of it."""

    image_id: str
    path: Path
    window: Window | None = None

    @property
    def place(self) -> tuple[Path, Window | None]:
        """Where its pixels are, whatever it is called."""
        return self.path, self.window
