"""`cmpagl serve`: a web page and a JSON API over one index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmpagl_cli.commands.options import IndexOption, settings
from cmpagl_cli.views import echo


def serve(
    ctx: typer.Context,
    index: IndexOption = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", metavar="FILE", help="Serve an exported feature set instead of an index."),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="NAME|DIR", help="Run that encodes queries. Default: the index's.")
    ] = None,
    host: Annotated[
        str,
        typer.Option("--host", metavar="ADDRESS", help="Address to listen on; other than loopback, a token is needed."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port; 0: any free one.")] = 8230,
    tiles: Annotated[
        str,
        typer.Option(
            "--tiles",
            metavar="URL",
            help="Tile server for the map, with {z}, {x} and {y}; browsers load from it. Default: a coastline alone.",
        ),
    ] = "",
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Search the newest index on a web page, and from programs by a JSON API (extra `web`).

    The page and everything it needs come from this machine. It is read-only, and answers only this machine unless
    --host says otherwise; the address that is then printed has a token, which every request must show. The API is
    described at /api/openapi.json. Ctrl-C or SIGTERM ends it.

    Examples:
      cmpagl serve
      cmpagl serve --index harbours --open
      cmpagl serve --host 0.0.0.0 --port 8080
    """
    from cmpagl_core.errors import UsageError
    from cmpagl_core.search.opening import open_searcher

    try:
        from cmpagl_core.serve.app import make_app
        from cmpagl_core.serve.server import listen
        from cmpagl_core.serve.server import run as run_server
    except ModuleNotFoundError as error:
        if error.name in ("starlette", "uvicorn", "python_multipart"):
            raise UsageError(f"{error.name} is not installed", hint="pip install 'cmpagl[web]'") from error
        raise
    given = settings(ctx)
    searcher = open_searcher(given.session, index, features, run)
    listening = listen(host, port, tiles)

    def ready() -> None:
        echo(listening.url)
        given.progress.say(f"serving {len(searcher.gallery):,} images of index {searcher.gallery.info.name}")
        if listening.access.token:
            given.progress.say("whoever has this address can search; its token is shown only here")
        if open_page:
            import webbrowser

            webbrowser.open(listening.url)

    run_server(make_app(searcher, given.session, listening.access), listening, ready)
    given.progress.say("stopped")
