"""`cmpagl retrieve`: pictures by text or by picture, and captions by picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cmpagl_cli.commands.options import FormatOption, IndexOption, OutputFormat, Settings, settings
from cmpagl_cli.views import Column, emit

if TYPE_CHECKING:
    from cmpagl_core.search.index import GalleryIndex
    from cmpagl_core.search.query import CaptionHit, Hit, Query


def retrieve(
    ctx: typer.Context,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What to look for, in words.")] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="Look for pictures like this one instead.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--top", min=1, metavar="K", help="How many to show.")] = 10,
    index: IndexOption = None,
    features: Annotated[
        Path | None, typer.Option("--features", metavar="FILE", help="Search an exported feature set instead.")
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="NAME|DIR", help="Run that reads the query; the index's if left out.")
    ] = None,
    to: Annotated[
        Literal["pictures", "captions"], typer.Option("--to", help="What to find; captions only with --image.")
    ] = "pictures",
    rerank: Annotated[
        Literal["none", "itm"],
        typer.Option("--rerank", help="itm: the fusion half looks again at the best 32; needs the run, takes seconds."),
    ] = "none",
    gallery: Annotated[
        Path | None, typer.Option("--gallery", metavar="FILE", help="Write the pictures as one HTML page.")
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in a browser; gallery.html if --gallery is left out.")
    ] = False,
    format: FormatOption = "table",
) -> None:
    """Find pictures by text, or by another picture, in the newest index.

    Without an index, one of all pictures of the newest run's data set is made first, once. Scores are cosines; with
    --rerank itm, cosine + match probability.

    Examples:
      cmpagl retrieve "two baseball fields next to a road"
      cmpagl retrieve "airport near sea" -k 20 --gallery found.html --open
      cmpagl retrieve --image mine.jpg
      cmpagl retrieve --image mine.jpg --to captions
      cmpagl retrieve "storage tanks" --features test.safetensors --format json
    """
    from cmpagl_core.errors import UsageError
    from cmpagl_core.search.opening import open_searcher

    query = _query(text, image)
    if to == "captions" and (image is None or gallery is not None or open_page):
        raise UsageError("--to captions answers --image in words", hint="leave out the text, --gallery and --open")
    given = settings(ctx)
    page = gallery if gallery is not None or not open_page else given.workspace.root / "gallery.html"
    searcher = open_searcher(given.workspace, given.progress, given.compute_device, index, features, run)
    if to == "captions":
        _show_captions(searcher.search_captions([query], k)[0], format)
        return
    hits = searcher.search([query], k)[0] if rerank == "none" else searcher.search_with_itm(query, k)
    _show_hits(hits, format)
    if page is not None:
        scores = "cosines" if rerank == "none" else "cosine + match probability"
        _write_page(given, page, searcher.gallery, hits, text or "", image, scores)
        if open_page:
            import webbrowser

            webbrowser.open(page.absolute().as_uri())


def _query(text: str | None, image: Path | None) -> Query:
    from cmpagl_core.errors import UsageError
    from cmpagl_core.search.query import ImageQuery, TextQuery

    if text is not None and image is None:
        return TextQuery(text)
    if image is not None and text is None:
        return ImageQuery(image)
    problem = "there is nothing to look for" if text is None else "a text and --image are two queries"
    raise UsageError(problem, hint='write `cmpagl retrieve "airport near sea"` or `cmpagl retrieve --image FILE`')


def _show_hits(hits: Sequence[Hit], format: OutputFormat) -> None:
    if format == "table":
        rows = [
            {"rank": hit.rank, "score": hit.score, "image_id": hit.image.image_id, "captions": _in_short(hit.captions)}
            for hit in hits
        ]
        last = [Column("captions")] if any(hit.captions for hit in hits) else []
        emit(rows, [Column("rank"), Column("score", digits=3), Column("image_id", "image"), *last])
        return
    keys = ("rank", "image_id", "path", "score", "captions")
    machine = [
        {
            "rank": hit.rank,
            "image_id": hit.image.image_id,
            "path": str(hit.image.path),
            "score": hit.score,
            "captions": hit.captions,
            **({} if hit.image.window is None else {"window": astuple(hit.image.window)}),
        }
        for hit in hits
    ]
    emit(machine, [Column(key, digits=3) for key in keys], format)


def _show_captions(hits: Sequence[CaptionHit], format: OutputFormat) -> None:
    keys = ("rank", "score", "caption", "image_ids")
    rows = [{key: getattr(hit, key) for key in keys} for hit in hits]
    if format == "table":
        rows = [{**row, "image_ids": _in_short(row["image_ids"])} for row in rows]
    heads = {"image_ids": "written for"}
    emit(rows, [Column(key, heads.get(key, ""), digits=3) for key in keys], format)


def _in_short(texts: Sequence[str]) -> str:
    """The first two different ones, and how many more there are."""
    different = list(dict.fromkeys(texts))
    more = f" (+{len(different) - 2})" if len(different) > 2 else ""
    return " | ".join(different[:2]) + more


def _write_page(
    given: Settings, page: Path, found: GalleryIndex, hits: Sequence[Hit], text: str, image: Path | None, scores: str
) -> None:
    from cmpagl_core.search.gallery import GalleryQuery, write_gallery

    query = GalleryQuery(text, image, found.info.name, len(found), found.info.model, scores)
    write_gallery(page, query, hits, given.progress)
    given.progress.say(f"gallery: {page}")
