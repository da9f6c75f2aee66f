"""ImageRef: an image's identity, the location of its pixels, how they are read, and its place on Earth."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cmpagl_core.imagery.reading import DEFAULT, Reading

if TYPE_CHECKING:  # a text query needs no NumPy function of ours
    from cmpagl_core.imagery.stretch import Rendering


@dataclass(frozen=True)
class Window:
    """A rectangle of a larger image, in pixels from its upper left corner."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Geo:
    """A file's place and day. crs: EPSG:32633 or WKT; "" for none. transform: pixel to CRS, as Affine has it (a to f).

    about: what the place was reckoned from where the file has no transform of its own: ground control points or RPCs.
    date: ISO 8601, "" for none; dated_by: who says so.
    """

    crs: str = ""
    transform: tuple[float, ...] | None = None
    about: Literal["", "gcps", "rpcs"] = ""
    date: str = ""
    dated_by: str = ""

    def bounds(self, window: Window) -> tuple[float, float, float, float] | None:
        """Left, bottom, right and top of a part of the file, in its CRS; None where its place is not known."""
        if self.transform is None:
            return None
        a, b, c, d, e, f = self.transform
        columns, rows = (window.left, window.left + window.width), (window.top, window.top + window.height)
        xs = [a * column + b * row + c for column in columns for row in rows]
        ys = [d * column + e * row + f for column in columns for row in rows]
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True)
class Scene:
    """What is known of a file with a place, or of which pieces are taken: its size in pixels, place and rendering.

    rendering: that of every piece of it; None where the file is read whole, or by Pillow.
    """

    width: int
    height: int
    geo: Geo
    rendering: Rendering | None = None


@dataclass(frozen=True)
class ImageRef:
    """An image, from listing to hit. image_id: its name in a gallery. window: a piece of the file; None: all of it.

    reading: what was asked of bands and stretch. scene: what is known of its file, where it is a piece or has a place.
    """

    image_id: str
    path: Path
    window: Window | None = None
    reading: Reading = DEFAULT
    scene: Scene | None = field(default=None, compare=False)

    def renamed(self, image_id: str) -> ImageRef:
        """The same image with another id."""
        return replace(self, image_id=image_id)

    @property
    def place(self) -> tuple[Path, Window | None]:
        """The location of its pixels, independent of its id."""
        return self.path, self.window

    @property
    def bounds(self) -> tuple[float, float, float, float] | None:
        """Left, bottom, right and top in the CRS of its file; None where they are not known."""
        if self.scene is None:
            return None
        whole = Window(0, 0, self.scene.width, self.scene.height)
        return self.scene.geo.bounds(self.window or whole)
