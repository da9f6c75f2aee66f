"""How hits are shown: as tables with links and thumbnails, in machine formats, as footprints, and as pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from cmpagl_cli.commands.options import OutputFormat
from cmpagl_cli.views import Column, render
from cmpagl_core.errors import UsageError

if TYPE_CHECKING:
    from cmpagl_core.search.query import Hit, Query

HitFormat = Literal["table", "json", "jsonl", "csv", "markdown", "latex", "paths", "geojson", "gpkg", "html"]

_THUMBNAIL_PX = 192
_THUMBNAIL_COLUMNS = 16


def hits_as_text(
    hits: Sequence[Hit], format: HitFormat, more: Sequence[dict[str, Any]], thumbnails: bool = False
) -> str:
    """The hits of one query in any format but gpkg and html. more: further columns of each hit, equally named."""
    if format == "paths":
        return "\n".join(dict.fromkeys(str(hit.image.path) for hit in hits))
    if format == "geojson":
        from cmpagl_core.search.answers import geojson

        return geojson(hits)
    further = [Column(key) for key in (more[0] if more else {})]
    if format == "table":
        rows = [{**_in_a_table(hit), **columns} for hit, columns in zip(hits, more, strict=True)]
        last = [Column(key) for key in ("date", "captions") if any(row[key] for row in rows)]
        first = []
        if thumbnails:
            first = [Column("thumbnail", " ")]
            rows = [{**row, "thumbnail": _thumbnail(hit)} for row, hit in zip(rows, hits, strict=True)]
        return render(rows, [*first, Column("rank"), _SCORE, _IMAGE, *further, *last], "table")
    from cmpagl_core.search.answers import document

    rows = [{**document(hit), **columns} for hit, columns in zip(hits, more, strict=True)]
    return render(rows, [*_columns(hits), *further], cast(OutputFormat, format))


def answers_as_text(queries: Sequence[Query], answers: Sequence[Sequence[Hit]], format: OutputFormat) -> str:
    """The hits of many queries: JSON has an object per query, other formats a row per hit."""
    from cmpagl_core.search.answers import document

    texts = [getattr(query, "text", "") for query in queries]
    pairs = list(zip(texts, answers, strict=True))
    if format in ("json", "jsonl"):
        documents = [{"query": text, "hits": [document(hit) for hit in hits]} for text, hits in pairs]
        return render(documents, [Column("query"), Column("hits")], format)
    if format == "table":
        rows = [{"query": text if hit.rank == 1 else "", **_in_a_table(hit)} for text, hits in pairs for hit in hits]
        return render(rows, [Column("query"), Column("rank"), _SCORE, _IMAGE], format)
    rows = [{"query": text, **document(hit)} for text, hits in pairs for hit in hits]
    return render(rows, [Column("query"), *_columns([hit for hits in answers for hit in hits])], format)


def in_short(texts: Sequence[str]) -> str:
    """The first two distinct texts, and how many more there are."""
    different = list(dict.fromkeys(texts))
    more = f" (+{len(different) - 2})" if len(different) > 2 else ""
    return " | ".join(different[:2]) + more


_SCORE = Column("score", digits=3)
_IMAGE = Column("image_id", "image", link="uri")


def _in_a_table(hit: Hit) -> dict[str, Any]:
    date = "" if hit.image.scene is None else hit.image.scene.geo.date
    return {
        "rank": hit.rank,
        "score": hit.score,
        "image_id": hit.image.image_id,
        "uri": Path(hit.image.path).absolute().as_uri(),
        "date": date,
        "captions": in_short(hit.captions),
    }


def _columns(hits: Sequence[Hit]) -> list[Column]:
    from cmpagl_core.search.answers import place_of

    keys = ("rank", "image_id", "path", "score", "captions")
    places = dict.fromkeys(key for hit in hits for key in place_of(hit.image))
    return [Column(key, digits=3) for key in (*keys, *places)]


def _thumbnail(hit: Hit) -> Any:
    """A small image for the terminal: by its graphics protocol, else in half blocks. Raises UsageError."""
    try:
        from textual_image.renderable import Image
    except ImportError as error:
        raise UsageError("textual-image is not installed", hint="pip install 'cmpagl[thumbnails]'") from error
    from cmpagl_core.errors import CmpaglError
    from cmpagl_core.imagery.reader import open_ref

    try:
        pixels = open_ref(hit.image)
    except CmpaglError as error:
        return str(error)
    pixels.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    return Image(pixels, width=_THUMBNAIL_COLUMNS)
