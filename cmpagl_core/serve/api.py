"""The JSON API: each function answers one address."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cmpagl_core.errors import CmpaglError, DataError, UsageError
from cmpagl_core.search.manage import list_indexes
from cmpagl_core.serve.answers import Answers
from cmpagl_core.serve.documents import Json, hit_document, index_document, item_document
from cmpagl_core.serve.exports import exported, read_export
from cmpagl_core.serve.openapi import AROUND, EXPLAIN, SIZE, description
from cmpagl_core.serve.parameters import SearchRequest, read_parameters, search_request
from cmpagl_core.serve.pictures import Pictures
from cmpagl_core.serve.problems import RequestError
from cmpagl_core.serve.uploads import received
from cmpagl_core.session import Session

_THUMBNAIL_PX = 320
_KEPT_S = 3600  # by browsers


@dataclass(frozen=True, eq=False)
class Api:
    """What answers are made from."""

    answers: Answers
    pictures: Pictures
    session: Session

    def routes(self) -> list[Route]:
        """Its addresses."""
        return [
            Route("/api/search", self.search, methods=["GET"]),
            Route("/api/search", self.search_by_file, methods=["POST"]),
            Route("/api/items/{id:path}", self.item, methods=["GET"]),
            Route("/api/thumbnails/{id:path}", self.thumbnail, methods=["GET"]),
            Route("/api/export", self.export, methods=["POST"]),
            Route("/api/explain", self.explain, methods=["GET"]),
            Route("/api/indexes", self.indexes, methods=["GET"]),
            Route("/api/openapi.json", self.openapi, methods=["GET"]),
        ]

    async def search(self, request: Request) -> Response:
        """Hits of a text, or of an image of the index."""
        return await self._answer(search_request(read_parameters(request.query_params.multi_items())))

    async def search_by_file(self, request: Request) -> Response:
        """Hits of an image that was sent, or inside polygons that were."""
        values = read_parameters(request.query_params.multi_items())
        async with received(request) as uploads:
            try:
                return await self._answer(search_request(values, uploads.image, uploads.inside))
            except CmpaglError as error:
                raise uploads.renamed(error) from error

    async def item(self, request: Request) -> Response:
        """One image of the index."""
        read_parameters(request.query_params.multi_items(), ())
        return Json(await asyncio.to_thread(item_document, self.answers.gallery, self._row(request.path_params["id"])))

    async def thumbnail(self, request: Request) -> Response:
        """Its JPEG."""
        values = read_parameters(request.query_params.multi_items(), (SIZE, AROUND))
        row = self._row(request.path_params["id"])
        size, around = values.get("size", _THUMBNAIL_PX), values.get("around", 1)
        try:
            content = await asyncio.to_thread(self.pictures.jpeg, row, size, around)
        except DataError as error:
            raise RequestError(404, error.message, error.hint) from error
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": f"private, max-age={_KEPT_S}"})

    async def export(self, request: Request) -> Response:
        """Chosen hits as a file."""
        read_parameters(request.query_params.multi_items(), ())
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError(415, "the body is not application/json", hint="see /api/openapi.json")
        gallery = self.answers.gallery
        asked = read_export(await request.body(), len(gallery))
        file = await asyncio.to_thread(exported, gallery, self.pictures, asked)
        headers = {"Content-Disposition": f'attachment; filename="{file.name}"'}
        return Response(file.content, media_type=file.media_type, headers=headers)

    async def explain(self, request: Request) -> Response:
        """Which regions of an image speak for a text."""
        values = read_parameters(request.query_params.multi_items(), EXPLAIN)
        for name in ("q", "id"):
            if name not in values:
                raise UsageError(f"{name} is missing", hint="give q, a text, and id, an image of the index")
        from cmpagl_core.serve.explaining import explained  # torch, which text queries do without

        row = self._row(values["id"])
        return Json(await asyncio.to_thread(explained, self.answers.searcher, self.pictures, row, values["q"]))

    async def indexes(self, request: Request) -> Response:
        """The indexes of the workspace, and which one is searched."""
        read_parameters(request.query_params.multi_items(), ())
        return Json(await asyncio.to_thread(self._indexes))

    async def openapi(self, request: Request) -> Response:
        """The description of all this."""
        return Json(description())

    async def _answer(self, asked: SearchRequest) -> Response:
        started = time.perf_counter()
        answer = await self.answers.search(asked)
        rows: list[Any] = answer.rows if asked.details else [None] * len(answer.hits)
        hits = [hit_document(hit, row) for hit, row in zip(answer.hits, rows, strict=True)]
        return Json(
            {
                "hits": hits,
                "total": answer.total,
                "reachable": answer.reachable,
                "took_ms": round(1000 * (time.perf_counter() - started), 3),
                "notes": answer.doubts,
            }
        )

    def _row(self, item: str) -> int:
        """Raises RequestError where there is no such image."""
        try:
            return self.answers.searcher.row_of(item)
        except DataError as error:
            raise RequestError(404, error.message, error.hint) from error

    def _indexes(self) -> list[dict[str, Any]]:
        ours = self.answers.gallery
        found = [
            {"name": one.info.name, "kind": one.info.kind, "dataset": one.info.dataset, "model": one.info.model,
             "images": one.images, "captions": one.captions, "dim": one.dim, "open": one.root == ours.root}
            for one in list_indexes(self.session.workspace, self.session.progress)
        ]  # fmt: skip
        return found if any(one["open"] for one in found) else [{**index_document(ours), "open": True}, *found]
