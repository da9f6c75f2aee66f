"""The addresses of the evaluation: the page and what it shows."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from cmpagl_core.errors import MismatchError
from cmpagl_core.html_page import render_page
from cmpagl_core.search.index import GalleryIndex, open_index
from cmpagl_core.search.manage import list_indexes
from cmpagl_core.serve.assets import assets_address
from cmpagl_core.serve.documents import Json, item_document
from cmpagl_core.serve.evaluation import chosen_subset, comparable, compared, scored
from cmpagl_core.serve.parameters import Parameter, read_parameters
from cmpagl_core.session import Session

PARAMETERS = (
    Parameter("split", "text", "Split of the data set, or all; test if left out."),
    Parameter("against", "text", "Name of another index of the workspace, over the same data."),
)
_KEPT = 8


class EvaluationApi:
    """Measures once and keeps it: an index does not change while it is open."""

    def __init__(self, gallery: GalleryIndex, session: Session) -> None:
        self._gallery, self._session = gallery, session
        self._known: dict[tuple[str | None, str | None], bytes] = {}
        self._one = threading.Lock()

    def routes(self) -> list[Route]:
        """Its addresses."""
        return [
            Route("/evaluation", self.page, methods=["GET"]),
            Route("/api/evaluation", self.evaluation, methods=["GET"]),
        ]

    async def page(self, request: Request) -> Response:
        """The page; what is chosen on it is in its address."""
        setup = json.dumps({"others": await asyncio.to_thread(self._others)})
        about = {"name": self._gallery.info.name, "setup": setup, "assets": assets_address()}
        return HTMLResponse(render_page("cmpagl_core.serve", "evaluation.html", **about))

    async def evaluation(self, request: Request) -> Response:
        """Recalls, scenes and worst queries."""
        values = read_parameters(request.query_params.multi_items(), PARAMETERS)
        content = await asyncio.to_thread(self._measured, values.get("split"), values.get("against"))
        return Response(content, media_type="application/json")

    def _measured(self, split: str | None, against: str | None) -> bytes:
        with self._one:
            key = (split, against)
            if key not in self._known:
                if len(self._known) >= _KEPT:
                    self._known.pop(next(iter(self._known)))
                self._known[key] = bytes(Json(self._document(split, against)).body)
            return self._known[key]

    def _document(self, split: str | None, against: str | None) -> dict[str, Any]:
        ours, workspace = self._gallery, self._session.workspace
        subset = chosen_subset(ours, workspace, split)
        runs = [scored(ours, subset)]
        if against is not None:
            other = open_index(workspace.folder("indexes", against))
            if not comparable(ours, other.info.manifest_sha256) or list(other.image_ids) != list(ours.image_ids):
                raise MismatchError(
                    f"indexes {ours.info.name} and {against} are not of the same data",
                    hint="index one data set with both models",
                )
            runs.append(scored(other, subset))
        found = compared(subset, runs)
        rows = {worst["own"] for worst in found["worst"]}
        rows.update(row for worst in found["worst"] for run in worst["runs"] for row in run["found"])
        return {**found, "items": {str(row): item_document(ours, row) for row in sorted(rows)}}

    def _others(self) -> list[str]:
        """Indexes of the workspace that can stand beside it."""
        found = list_indexes(self._session.workspace, self._session.progress)
        return [
            one.info.name
            for one in found
            if one.root != self._gallery.root and comparable(self._gallery, one.info.manifest_sha256)
        ]
