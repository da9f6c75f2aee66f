"""Errors as problem+json (RFC 9457), with the sentences of the command line."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from cmpagl_core.errors import CmpaglError, DataError, GuardError, MismatchError, UsageError

PROBLEM = "application/problem+json"


class RequestError(CmpaglError):
    """A request that is refused for what it is, not for what it asks."""

    def __init__(self, status: int, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.status = status


def status_of(error: CmpaglError) -> int:
    """The HTTP status that says the same as an error's exit code."""
    if isinstance(error, RequestError):
        return error.status
    for kind, status in ((UsageError, 400), (DataError, 422), (GuardError, 403), (MismatchError, 409)):
        if isinstance(error, kind):
            return status
    return 500


def document(status: int, error: CmpaglError) -> dict[str, Any]:
    """The problem as JSON. detail: the whole sentence; hint: its second half, the way out."""
    about = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": str(error)}
    return about if error.hint is None else {**about, "hint": error.hint}


def problem(error: CmpaglError, headers: dict[str, str] | None = None) -> JSONResponse:
    """The response for an error."""
    status = status_of(error)
    return JSONResponse(document(status, error), status, headers, media_type=PROBLEM)
