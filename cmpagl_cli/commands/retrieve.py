"""`cmpagl retrieve`: find images by text or by image, and captions by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmpagl_cli.commands.options import FormatOption, IndexOption, OutputFormat, Settings, settings
from cmpagl_cli.views import Column, emit

if TYPE_CHECKING:
    from cmpagl_core.imagery.image_ref import ImageRef
    from cmpagl_core.search.index import GalleryIndex
    from cmpagl_core.search.query import CaptionHit, Hit, Query


def retrieve(
    ctx: typer.Context,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Text query.")] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="Image query: find similar images.")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries", metavar="FILE", help='File of many text queries: one per line, or JSON lines {"text": ...}.'
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", "--top", min=1, metavar="K", help="Number of hits.")] = 10,
    index: IndexOption = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", metavar="FILE", help="Search an exported feature set instead of an index."),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="NAME|DIR", help="Run that encodes the query. Default: the index's.")
    ] = None,
    to: Annotated[
        Literal["images", "captions"], typer.Option("--to", help="What to search for; captions only with --image.")
    ] = "images",
    rerank: Annotated[
        Literal["none", "itm"],
        typer.Option("--rerank", help="itm: re-score the top 32 with the ITM head; needs the run and takes seconds."),
    ] = "none",
    gallery: Annotated[
        Path | None, typer.Option("--gallery", metavar="FILE", help="Write the hits to an HTML page.")
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in a browser. Default page: gallery.html.")
    ] = False,
    format: FormatOption = "table",
) -> None:
    """Find images by text or by example image in the newest index; with --queries, run many text queries at once.

    If there is no index, one of all images of the newest run's data set is built first. Scores are cosines; with
    --rerank itm, cosine + match probability.

    Examples:
      cmpagl retrieve "two baseball fields next to a road"
      cmpagl retrieve "airport near sea" -k 20 --gallery found.html --open
      cmpagl retrieve --image mine.jpg
      cmpagl retrieve --image mine.jpg --to captions
      cmpagl retrieve --queries queries.txt -k 5 --format jsonl
      cmpagl retrieve "storage tanks" --features test.safetensors --format json
    """
    from cmpagl_core.errors import UsageError
    from cmpagl_core.search.opening import open_searcher

    asked = _queries(text, image, queries)
    if to == "captions" and (image is None or gallery is not None or open_page):
        raise UsageError("--to captions needs --image", hint="leave out the text, --gallery and --open")
    if queries is not None and (rerank != "none" or gallery is not None or open_page):
        raise UsageError("--queries prints one list of hits per query", hint="leave out --rerank, --gallery and --open")
    given = settings(ctx)
    page = gallery if gallery is not None or not open_page else given.workspace.root / "gallery.html"
    searcher = open_searcher(given.session, index, features, run)
    if queries is not None:
        _show_answers(asked, searcher.search(asked, k), format)
        return
    if to == "captions":
        _show_captions(searcher.search_captions(asked, k)[0], format)
        return
    hits = searcher.search(asked, k)[0] if rerank == "none" else searcher.search_with_itm(asked[0], k)
    _show_hits(hits, format)
    if page is not None:
        scores = "cosines" if rerank == "none" else "cosine + match probability"
        _write_page(given, page, searcher.gallery, hits, text or "", image, scores)
        if open_page:
            import webbrowser

            webbrowser.open(page.absolute().as_uri())


def _queries(text: str | None, image: Path | None, queries: Path | None) -> Sequence[Query]:
    from cmpagl_core.errors import UsageError
    from cmpagl_core.search.query import ImageQuery, TextQuery, read_queries

    given = [
        name for name, value in (("a text", text), ("--image", image), ("--queries", queries)) if value is not None
    ]
    if len(given) != 1:
        problem = " and ".join(given) + " are two queries" if given else "no query is given"
        raise UsageError(problem, hint='write `cmpagl retrieve "airport near sea"` or `cmpagl retrieve --image FILE`')
    if queries is not None:
        return read_queries(queries)
    return [TextQuery(text)] if text is not None else [ImageQuery(image or Path())]


def _show_hits(hits: Sequence[Hit], format: OutputFormat) -> None:
    if format == "table":
        rows = [_in_a_table(hit) for hit in hits]
        last = [Column(key) for key in ("date", "captions") if any(row[key] for row in rows)]
        emit(rows, [Column("rank"), Column("score", digits=3), Column("image_id", "image"), *last])
        return
    emit([_whole(hit) for hit in hits], _columns(hits), format)


def _columns(hits: Sequence[Hit]) -> list[Column]:
    keys = ("rank", "image_id", "path", "score", "captions")
    places = dict.fromkeys(key for hit in hits for key in _where(hit.image))
    return [Column(key, digits=3) for key in (*keys, *places)]


def _show_answers(queries: Sequence[Query], answers: Sequence[Sequence[Hit]], format: OutputFormat) -> None:
    """The hits of many queries: JSON has an object per query, other formats a row per hit."""
    texts = [getattr(query, "text", "") for query in queries]
    pairs = list(zip(texts, answers, strict=True))
    if format in ("json", "jsonl"):
        documents = [{"query": text, "hits": [_whole(hit) for hit in hits]} for text, hits in pairs]
        emit(documents, ["query", "hits"], format)
    elif format == "table":
        rows = [{"query": text if hit.rank == 1 else "", **_in_a_table(hit)} for text, hits in pairs for hit in hits]
        columns = [Column("query"), Column("rank"), Column("score", digits=3), Column("image_id", "image")]
        emit(rows, columns)
    else:
        rows = [{"query": text, **_whole(hit)} for text, hits in pairs for hit in hits]
        emit(rows, [Column("query"), *_columns([hit for hits in answers for hit in hits])], format)


def _in_a_table(hit: Hit) -> dict[str, Any]:
    captions = _in_short(hit.captions)
    date = "" if hit.image.scene is None else hit.image.scene.geo.date
    return {"rank": hit.rank, "score": hit.score, "image_id": hit.image.image_id, "date": date, "captions": captions}


def _whole(hit: Hit) -> dict[str, Any]:
    return {
        "rank": hit.rank,
        "image_id": hit.image.image_id,
        "path": str(hit.image.path),
        "score": hit.score,
        "captions": hit.captions,
        **_where(hit.image),
    }


def _where(image: ImageRef) -> dict[str, Any]:
    """The window of a tile, and the place and day of an image that has them."""
    window = {} if image.window is None else {"window": astuple(image.window)}
    if image.scene is None:
        return window
    geo = image.scene.geo
    about = {"bounds_from": geo.about} if geo.about else {}
    return {**window, "bounds": image.bounds, "crs": geo.crs or None, "date": geo.date or None, **about}


def _show_captions(hits: Sequence[CaptionHit], format: OutputFormat) -> None:
    keys = ("rank", "score", "caption", "image_ids")
    rows = [{key: getattr(hit, key) for key in keys} for hit in hits]
    if format == "table":
        rows = [{**row, "image_ids": _in_short(row["image_ids"])} for row in rows]
    heads = {"image_ids": "written for"}
    emit(rows, [Column(key, heads.get(key, ""), digits=3) for key in keys], format)


def _in_short(texts: Sequence[str]) -> str:
    """The first two distinct texts, and how many more there are."""
    different = list(dict.fromkeys(texts))
    more = f" (+{len(different) - 2})" if len(different) > 2 else ""
    return " | ".join(different[:2]) + more


def _write_page(
    given: Settings, page: Path, found: GalleryIndex, hits: Sequence[Hit], text: str, image: Path | None, scores: str
) -> None:
    from cmpagl_core.search.gallery import GalleryQuery, write_gallery

    query = GalleryQuery(text, image, found.info.name, len(found), found.info.model, scores, found.info.reading)
    write_gallery(page, query, hits, given.progress)
    given.progress.say(f"gallery: {page}")
