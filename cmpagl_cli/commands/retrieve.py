"""`cmpagl retrieve`: pictures by text or by picture, and captions by picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmpagl_cli.commands.options import FormatOption, IndexOption, OutputFormat, Settings, settings
from cmpagl_cli.views import Column, emit

if TYPE_CHECKING:
    from cmpagl_core.search.index import GalleryIndex
    from cmpagl_core.search.search import Hit


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

    if (text is None) == (image is None):
        problem = "there is nothing to look for" if text is None else "a text and --image are two queries"
        raise UsageError(problem, hint='write `cmpagl retrieve "airport near sea"` or `cmpagl retrieve --image FILE`')
    if to == "captions" and (image is None or gallery is not None or open_page):
        raise UsageError("--to captions answers --image in words", hint="leave out the text, --gallery and --open")
    if rerank == "itm" and text is None:
        raise UsageError("--rerank itm compares a text with pictures", hint="leave out --image")
    given = settings(ctx)
    page = gallery if gallery is not None or not open_page else given.workspace.root / "gallery.html"
    found = _gallery(given, index, features, run)
    query = _query(given, found, text, image, run)
    if to == "captions":
        _show_captions(found, query, k, format)
        return
    hits = _hits(found, query, k) if rerank == "none" else _rematched(given, found, query, text or "", k, run)
    _show_hits(hits, format)
    if page is not None:
        scores = "cosines" if rerank == "none" else "cosine + match probability"
        _write_page(given, page, found, hits, text or "", image, scores)
        if open_page:
            import webbrowser

            webbrowser.open(page.absolute().as_uri())


def _gallery(given: Settings, index: str | None, features: Path | None, run: str | None) -> GalleryIndex:
    """The gallery that is meant; made on the way when there is none yet."""
    from cmpagl_core.search.query import find_gallery, newer_run

    found = find_gallery(given.workspace, index, features)
    if found is None:
        from cmpagl_core.search.build import IndexRequest, make_index

        given.progress.say("there is no index yet: making one of all pictures of the run's data set, once")
        request = IndexRequest(run=run, wait=True)
        return make_index(request, given.workspace, given.progress, given.compute_device).index
    newer = None if index is not None or run is not None else newer_run(found, given.workspace)
    if newer is not None:
        given.progress.say(
            f"index {found.info.name} was made with run {found.info.model}; run {newer.name} is newer: "
            f"`cmpagl index --run {newer.name}` indexes its data set"
        )
    return found


def _query(given: Settings, found: GalleryIndex, text: str | None, image: Path | None, run: str | None) -> Any:
    from cmpagl_core.search.query import image_features, text_features

    if image is not None:
        return image_features(image, found, given.workspace, run, given.progress, given.compute_device)
    return text_features(text or "", found, given.workspace, run, given.progress)


def _hits(found: GalleryIndex, query: Any, k: int) -> list[Hit]:
    from cmpagl_core.search.search import search

    return search(found, query, k)


def _rematched(given: Settings, found: GalleryIndex, query: Any, text: str, k: int, run: str | None) -> list[Hit]:
    """The k best after the fusion half has looked at the best 32, or at k if that is more."""
    from cmpagl_core.search.query import run_of
    from cmpagl_core.search.rematch import CANDIDATES, rematch

    loaded = run_of(found, given.workspace, run).load(given.compute_device())
    return rematch(loaded, text, _hits(found, query, max(k, CANDIDATES)), k, given.progress)


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


def _show_captions(found: GalleryIndex, query: Any, k: int, format: OutputFormat) -> None:
    from cmpagl_core.search.query import search_captions

    keys = ("rank", "score", "caption", "image_ids")
    rows = [{key: getattr(hit, key) for key in keys} for hit in search_captions(found, query, k)]
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
