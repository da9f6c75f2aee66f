"""The page's own files, at an address that changes with their content, so that browsers need not ask for them again."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from pathlib import Path

from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_FOLDER = Path(str(resources.files("cmpagl_core.serve") / "static"))


@cache
def assets_address() -> str:
    """Where they are."""
    digest = hashlib.sha256()
    for path in sorted(path for path in _FOLDER.rglob("*") if path.is_file()):
        digest.update(path.read_bytes())
    return f"/static/{digest.hexdigest()[:12]}"


def assets() -> Mount:
    """The route that answers them, and nothing beside them."""
    return Mount(assets_address(), _Kept(directory=_FOLDER))


class _Kept(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "private, max-age=31536000, immutable"
        return response
