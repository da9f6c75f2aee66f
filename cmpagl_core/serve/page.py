"""The page: its HTML with what it shows before anything is asked, taken from the index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from urllib.parse import quote

import numpy as np
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from cmpagl_core.errors import CmpaglError
from cmpagl_core.html_page import render_page
from cmpagl_core.search.index import GalleryIndex
from cmpagl_core.search.opening import run_of
from cmpagl_core.search.query import Hit
from cmpagl_core.serve.assets import assets_address
from cmpagl_core.serve.documents import more_of
from cmpagl_core.serve.exports import can_write_geopackage
from cmpagl_core.serve.guard import Access
from cmpagl_core.workspace import Workspace

_PACKAGE = "cmpagl_core.serve"
_EXAMPLES, _SAMPLES = 6, 12
_SHORTEST, _LONGEST = 12, 70  # characters of an example
_LOOKED_AT = 400  # captions, for examples
_WITHOUT_CAPTIONS = ("airport near sea", "harbour with many boats", "storage tanks", "river through farmland")
MODULES = (
    "api.js",
    "details.js",
    "elements.js",
    "filters.js",
    "grid.js",
    "map.js",
    "parts.js",
    "selection.js",
    "state.js",
)


class Page:
    """The pages of one index. workspace: where its run is, if it was made by one."""

    def __init__(self, gallery: GalleryIndex, access: Access, workspace: Workspace) -> None:
        self._gallery, self._access, self._workspace = gallery, access, workspace

    async def search(self, request: Request) -> Response:
        """Where one searches. The query in the address is read by the page."""
        return HTMLResponse(self.html)

    @cached_property
    def html(self) -> str:
        """What it has before anything is asked."""
        gallery = self._gallery
        places, dates = _has_places_and_dates(gallery)
        captions = len(gallery.caption_text) > 0
        setup = {
            "tiles": self._access.tiles,
            "places": places,
            "dates": dates,
            "explains": has_itm_head(gallery, self._workspace),
            "geopackage": places and can_write_geopackage(),
        }
        return render_page(
            _PACKAGE,
            "index.html",
            name=gallery.info.name,
            images=len(gallery),
            places=places,
            captions=captions,
            setup=json.dumps(setup),
            examples=list(_examples(gallery)) if captions else _WITHOUT_CAPTIONS,
            samples=[_sample(gallery, row) for row in _spread(len(gallery), _SAMPLES)],
            modules=MODULES,
            assets=assets_address(),
        )


def has_itm_head(gallery: GalleryIndex, workspace: Workspace) -> bool:
    """Whether the index's run is here and can explain its hits."""
    if gallery.info.model_kind != "run":
        return False
    try:
        return run_of(gallery, workspace, None).recipe.matches_pairs
    except CmpaglError:
        return False


def _spread(count: int, wanted: int) -> list[int]:
    """So many rows, from all over the index."""
    return sorted(set(np.linspace(0, count - 1, min(count, wanted)).astype(int).tolist()))


def _examples(gallery: GalleryIndex) -> Iterator[str]:
    """Captions of the index that are short enough to read, and differ in their first words."""
    heads: set[str] = set()
    for text in _spread(len(gallery.captions), _LOOKED_AT):
        caption = gallery.captions[text].strip().rstrip(".").strip()
        head = " ".join(caption.lower().split()[:3])
        if _SHORTEST <= len(caption) <= _LONGEST and head not in heads and len(heads) < _EXAMPLES:
            heads.add(head)
            yield caption


def _sample(gallery: GalleryIndex, row: int) -> dict[str, str]:
    image, captions = gallery.image(row), gallery.captions_of(row)
    about = more_of(Hit(1, image, 0.0, ()), row)
    like = about["thumbnail"].rpartition("/")[2]
    return {"like": quote(like, safe="%"), "thumbnail": about["thumbnail"], "name": image.image_id,
            "about": captions[0] if captions else image.image_id}  # fmt: skip


def _has_places_and_dates(gallery: GalleryIndex) -> tuple[bool, bool]:
    """Whether any image has coordinates, and whether any has a day."""
    if gallery.scenes is None:
        return False, False
    places = dates = False
    for row in np.unique(gallery.scenes.of_row, return_index=True)[1].tolist():
        scene = gallery.scenes.scene(row)
        if scene is not None:
            places |= bool(scene.geo.crs) and scene.geo.transform is not None
            dates |= bool(scene.geo.date)
        if places and dates:
            break
    return places, dates
