"""What the API answers, as JSON: hits as `cmpagl retrieve` writes them, with what the page needs besides."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from cmpagl_core.search.answers import document, footprint
from cmpagl_core.search.index import GalleryIndex
from cmpagl_core.search.query import Hit


class Json(Response):
    """JSON in ASCII, since a path may hold bytes that are no UTF-8."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def hit_document(hit: Hit, row: int | None) -> dict[str, Any]:
    """A hit as `retrieve` writes it; with a row, also where its thumbnail is and where it lies."""
    about = document(hit)
    return about if row is None else {**about, **more_of(hit, row)}


def item_document(gallery: GalleryIndex, row: int) -> dict[str, Any]:
    """An image of the index, without rank and score."""
    hit = Hit(0, gallery.image(row), 0.0, tuple(gallery.captions_of(row)))
    about = {key: value for key, value in document(hit).items() if key not in ("rank", "score")}
    scene = hit.image.scene
    size = {} if scene is None else {"scene_size": [scene.width, scene.height]}
    return {**about, **more_of(hit, row), **size}


def index_document(gallery: GalleryIndex) -> dict[str, Any]:
    """What is known of an index."""
    info = gallery.info
    return {
        "name": info.name,
        "kind": info.kind,
        "dataset": info.dataset,
        "model": info.model,
        "images": len(gallery),
        "captions": len(gallery.caption_text),
        "dim": int(gallery.image_features.shape[1]),
    }


def more_of(hit: Hit, row: int) -> dict[str, Any]:
    """What the page needs beside: row, thumbnail and footprint."""
    return {"row": row, "thumbnail": f"/api/thumbnails/{_quoted(hit, row)}", "footprint": footprint(hit.image)}


def _quoted(hit: Hit, row: int) -> str:
    """The id in an address; the row where the id is no Unicode text, or one that browsers would take away."""
    try:
        quoted = quote(hit.image.image_id, safe="")
    except UnicodeEncodeError:
        return str(row)
    return str(row) if quoted in ("", ".", "..") else quoted
