"""Retrieved images as one self-contained HTML page with embedded thumbnails (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cmpagl_core.html_page import render_page
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.reading import DEFAULT, Reading
from cmpagl_core.imagery.thumbnail import Thumbnail, thumbnail
from cmpagl_core.progress import Progress
from cmpagl_core.search.query import Hit

_THUMBNAIL_PX = 320
_QUERY_PX = 240


@dataclass(frozen=True)
class GalleryQuery:
    """The query, a text or an image, and the searched gallery: its name and number of images."""

    text: str
    image: Path | None
    gallery: str
    images: int
    model: str
    scores: str = "cosines"
    reading: Reading = DEFAULT  # of the image that was asked for


@dataclass(frozen=True)
class _Tile:
    hit: Hit
    captions: tuple[str, ...]  # the different ones
    thumbnail: Thumbnail
    share: float  # length of the score bar, 0 to 100


def render_gallery(query: GalleryQuery, hits: Sequence[Hit], progress: Progress) -> str:
    """The page as text, with all external text escaped.

    A missing or broken image is shown as missing, with its id, score and captions.
    """
    tiles: list[_Tile] = []
    with progress.task("thumbnails", len(hits), "img") as advance:
        for hit in hits:
            tiles.append(_tile(hit, hits))
            advance(1)
    asked = ""
    if query.image is not None:
        asked = thumbnail(ImageRef(query.image.name, query.image, reading=query.reading), _QUERY_PX).uri
    return render_page("cmpagl_core.search", "gallery.html", query=query, asked=asked, tiles=tiles)


def _tile(hit: Hit, hits: Sequence[Hit]) -> _Tile:
    """The score bar spans 0, which the page states, to the best score; a score below 0 has none."""
    best = hits[0].score
    share = 100 * max(hit.score, 0.0) / best if best > 0 else 0.0
    return _Tile(hit, tuple(dict.fromkeys(hit.captions)), thumbnail(hit.image, _THUMBNAIL_PX), share)
