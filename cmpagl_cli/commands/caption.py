"""`cmpagl caption`: find captions for an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cmpagl_cli.commands.options import FormatOption, IndexOption, OutputFormat, settings
from cmpagl_cli.hits import in_short
from cmpagl_cli.views import Column, emit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cmpagl_core.search.query import CaptionHit


def caption(
    ctx: typer.Context,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Query image.")],
    k: Annotated[int, typer.Option("-k", "--top", min=1, metavar="K", help="Number of captions.")] = 10,
    index: IndexOption = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", metavar="FILE", help="Search an exported feature set instead of an index."),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="NAME|DIR", help="Run that encodes the image. Default: the index's.")
    ] = None,
    format: FormatOption = "table",
) -> None:
    """Find the data set captions that match an image best. Captions are retrieved, not generated.

    The index must have captions, like that of a data set.

    Examples:
      cmpagl caption mine.jpg
      cmpagl caption mine.jpg -k 3 --index ucm-cpu --format json
    """
    from cmpagl_core.search.opening import open_searcher
    from cmpagl_core.search.query import ImageQuery

    given = settings(ctx)
    searcher = open_searcher(given.session, index, features, run)
    _show_captions(searcher.search_captions([ImageQuery(image)], k)[0], format)


def _show_captions(hits: Sequence[CaptionHit], format: OutputFormat) -> None:
    keys = ("rank", "score", "caption", "image_ids")
    rows = [{key: getattr(hit, key) for key in keys} for hit in hits]
    if format == "table":
        rows = [{**row, "image_ids": in_short(row["image_ids"])} for row in rows]
    heads = {"image_ids": "written for"}
    emit(rows, [Column(key, heads.get(key, ""), digits=3) for key in keys], format)
