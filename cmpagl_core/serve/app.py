"""The whole application: API, page and static files behind the guard."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cmpagl_core.errors import CmpaglError
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.serve.answers import Answers
from cmpagl_core.serve.api import Api
from cmpagl_core.serve.assets import assets
from cmpagl_core.serve.evaluation_api import EvaluationApi
from cmpagl_core.serve.guard import Access, Guard
from cmpagl_core.serve.page import Page
from cmpagl_core.serve.pictures import Pictures
from cmpagl_core.serve.problems import RequestError, problem
from cmpagl_core.session import Session


def make_app(searcher: Searcher, session: Session, access: Access) -> ASGIApp:
    """Everything that is served over one open Searcher."""
    answers = Answers(searcher)
    api = Api(answers, Pictures(searcher.gallery), session)
    page = Page(searcher.gallery, access, session.workspace)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        answers.start()
        await asyncio.to_thread(lambda: page.html)  # so that the first visitor does not wait for it
        try:
            yield
        finally:
            answers.stop()

    async def unexpected(request: Request, error: Exception) -> Response:
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "?"
        session.progress.say(f"{request.method} {request.url.path}: {type(error).__name__} at {place} ({error})")
        return problem(CmpaglError(f"unexpected {type(error).__name__} at {place}", hint="this is a bug"))

    app = Starlette(
        routes=[
            *api.routes(),
            *EvaluationApi(searcher.gallery, session).routes(),
            Route("/", page.search, methods=["GET"]),
            assets(),
        ],
        exception_handlers={CmpaglError: _refused, HTTPException: _not_routed, Exception: unexpected},
        lifespan=lifespan,
    )
    return Guard(app, access)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, CmpaglError)
    headers = {"Connection": "close"} if isinstance(error, RequestError) and error.status in (408, 413) else None
    return problem(error, headers)


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        sentence = f"{request.url.path} is not answered for {request.method}"
        return problem(RequestError(405, sentence, hint="this is read-only"), headers)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return problem(RequestError(404, f"there is no {request.url.path[:200]}", hint="see /api/openapi.json"))
    return problem(RequestError(error.status_code, str(error.detail)), headers)
