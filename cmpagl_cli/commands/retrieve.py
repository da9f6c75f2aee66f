"""`cmpagl retrieve`: find images by text, by image, or by a mixture of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from cmpagl_cli.commands.options import BandsOption, IndexOption, OutputFormat, Settings, StretchOption, settings
from cmpagl_cli.views import Column, echo, emit

if TYPE_CHECKING:
    from cmpagl_core.imagery.reading import Reading
    from cmpagl_core.search.index import GalleryIndex
    from cmpagl_core.search.query import Hit, Query

RetrieveFormat = Literal["table", "json", "jsonl", "csv", "markdown", "latex", "paths", "geojson"]
RetrieveFormatOption = Annotated[
    RetrieveFormat,
    typer.Option("--format", help="Format of the result on stdout; paths: only file paths; geojson: footprints."),
]


def retrieve(
    ctx: typer.Context,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Text query.")] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="Image query: find similar images.")
    ] = None,
    like: Annotated[
        str | None, typer.Option("--like", metavar="ID|ROW", help="Find images similar to this one of the index.")
    ] = None,
    plus: Annotated[
        list[str] | None,
        typer.Option(
            "--plus", metavar="[W:]TEXT|FILE", help="Add a text or image to the query, with weight W; repeatable."
        ),
    ] = None,
    minus: Annotated[
        list[str] | None,
        typer.Option(
            "--minus",
            metavar="[W:]TEXT|FILE",
            help="Subtract a text or image from the query, with weight W; repeatable.",
        ),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            "--queries", metavar="FILE", help='File of many text queries: one per line, or JSON lines {"text": ...}.'
        ),
    ] = None,
    bands: BandsOption = None,
    stretch: StretchOption = None,
    k: Annotated[int, typer.Option("-k", "--top", min=1, metavar="K", help="Number of hits.")] = 10,
    bbox: Annotated[
        str | None, typer.Option("--bbox", metavar="W,S,E,N", help="Only images that intersect this box, in degrees.")
    ] = None,
    near: Annotated[
        str | None, typer.Option("--near", metavar="LON,LAT", help="Only images around this point; needs --within.")
    ] = None,
    within: Annotated[
        str | None,
        typer.Option("--within", metavar="DISTANCE", help="Radius of --near to an image's centre: 500m or 5km."),
    ] = None,
    inside: Annotated[
        Path | None,
        typer.Option("--inside", metavar="GEOJSON", help="Only images that intersect these polygons (extra `geo`)."),
    ] = None,
    since: Annotated[
        str, typer.Option("--from", metavar="DATE", help="Only images from this day on: 2024, 2024-05 or 2024-05-31.")
    ] = "",
    until: Annotated[str, typer.Option("--to", metavar="DATE", help="Only images up to this day.")] = "",
    path: Annotated[str, typer.Option("--path", metavar="PATTERN", help="Only files whose path matches.")] = "",
    scene: Annotated[str, typer.Option("--scene", metavar="PATTERN", help="Only files whose name matches.")] = "",
    min_score: Annotated[float | None, typer.Option("--min-score", help="Only hits of at least this score.")] = None,
    diverse: Annotated[
        bool, typer.Option("--diverse", help="Hide near-duplicates of better hits, and overlapping tiles.")
    ] = False,
    regions: Annotated[bool, typer.Option("--regions", help="Merge touching tiles into regions.")] = False,
    index: IndexOption = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", metavar="FILE", help="Search an exported feature set instead of an index."),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="NAME|DIR", help="Run that encodes the query. Default: the index's.")
    ] = None,
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
    copy_to: Annotated[
        Path | None, typer.Option("--copy-to", metavar="DIR", help="Copy the files of the hits to this folder.")
    ] = None,
    crops: Annotated[
        Path | None,
        typer.Option("--crops", metavar="DIR", help="Write each hit to this folder as a PNG, as the model saw it."),
    ] = None,
    format: RetrieveFormatOption = "table",
) -> None:
    """Find images by text, by example, or by a mixture of both in the newest index.

    If there is no index, one of all images of the newest run's data set is built first. Filters apply before the
    search, so they never reduce the number of hits below K if there are K matches. Scores are cosines; with --rerank
    itm, cosine + match probability. --queries runs many text queries at once.

    Examples:
      cmpagl retrieve "two baseball fields next to a road"
      cmpagl retrieve "airport near sea" -k 20 --gallery found.html --open
      cmpagl retrieve "harbour" --plus "2:storage tanks" --minus ships --plus mine.jpg
      cmpagl retrieve "solar farm" --near 12.5,55.7 --within 20km --from 2024-05 --format geojson
      cmpagl retrieve --image mine.jpg --diverse --crops found
      cmpagl retrieve --queries queries.txt -k 5 --format jsonl
    """
    from cmpagl_core.errors import UsageError
    from cmpagl_core.search.filters import Filters, parse_box, parse_distance, parse_point
    from cmpagl_core.search.narrowing import Narrowed
    from cmpagl_core.search.opening import open_searcher

    if until in ("images", "captions"):
        raise UsageError("--to is a date", hint="for captions call `cmpagl caption IMAGE`")
    asked = _queries(text, image, like, plus or [], minus or [], queries, _reading(image, bands, stretch))
    one_alone = rerank != "none" or gallery is not None or open_page or regions or crops or copy_to
    if queries is not None and (one_alone or format in ("paths", "geojson")):
        raise UsageError(
            "--queries prints one list of hits per query",
            hint="leave out --rerank, --regions, --gallery, --open, --copy-to, --crops and formats of files",
        )
    filters = Filters(
        None if bbox is None else parse_box(bbox),
        None if near is None else parse_point(near),
        None if within is None else parse_distance(within),
        inside, since, until, path, scene,
    )  # fmt: skip
    given = settings(ctx)
    page = gallery if gallery is not None or not open_page else given.workspace.root / "gallery.html"
    searcher = open_searcher(given.session, index, features, run)
    narrowed = Narrowed(filters.mask(searcher.gallery), min_score, diverse)
    if queries is not None:
        _show_answers(asked, searcher.search(asked, k, narrowed), _plain(format))
        return
    if rerank == "none":
        hits = searcher.search(asked, k, narrowed)[0]
    else:
        hits = searcher.search_with_itm(asked[0], k, narrowed)
    if len(hits) < k and (filters.are_given or min_score is not None):
        given.progress.say(f"the filters leave {len(hits)} images")
    hits, merged = _merged(hits) if regions else (hits, None)
    _show_hits(hits, format, merged)
    _write_files(given, hits, copy_to, crops)
    if page is not None:
        scores = "cosines" if rerank == "none" else "cosine + match probability"
        _write_page(given, page, searcher.gallery, hits, text or like or "", image, scores)
        if open_page:
            import webbrowser

            webbrowser.open(page.absolute().as_uri())


def _queries(
    text: str | None,
    image: Path | None,
    like: str | None,
    plus: Sequence[str],
    minus: Sequence[str],
    queries: Path | None,
    reading: Reading | None,
) -> Sequence[Query]:
    from cmpagl_core.errors import UsageError
    from cmpagl_core.search.query import (
        CombinedQuery,
        ImageQuery,
        ItemQuery,
        TextQuery,
        Weighted,
        parse_part,
        read_queries,
    )

    named = (("a text", text), ("--image", image), ("--like", like), ("--queries", queries))
    given = [name for name, value in named if value is not None]
    if len(given) > 1 or (not given and not plus):
        problem = " and ".join(given) + " are two queries" if given else "no query is given"
        raise UsageError(
            problem,
            hint='write `cmpagl retrieve "airport near sea"` or `cmpagl retrieve --image FILE`; --plus adds to it',
        )
    if queries is not None:
        if plus or minus:
            raise UsageError("--plus and --minus are for one query", hint="leave out --queries")
        return read_queries(queries)
    first: TextQuery | ImageQuery | ItemQuery | None = None
    if text is not None:
        first = TextQuery(text)
    elif image is not None:
        first = ImageQuery(image, reading)
    elif like is not None:
        first = ItemQuery(like)
    if first is not None and not plus and not minus:
        return [first]
    whole = () if first is None else (Weighted(first, 1.0),)
    more = (*(parse_part(part) for part in plus), *(parse_part(part, -1.0) for part in minus))
    return [CombinedQuery((*whole, *more))]


def _reading(image: Path | None, bands: str | None, stretch: str | None) -> Reading | None:
    """How the query image is read; None for the way of the index."""
    from cmpagl_core.errors import UsageError
    from cmpagl_core.imagery.reading import AUTO, Reading

    if bands is None and stretch is None:
        return None
    if image is None:
        raise UsageError("--bands and --stretch say how the image of --image is read", hint="leave them out")
    return Reading(bands or AUTO, stretch or AUTO)


def _merged(hits: Sequence[Hit]) -> tuple[list[Hit], list[int]]:
    """Hits whose touching tiles are one, and of how many tiles each is."""
    from cmpagl_core.search.answers import merge_regions

    found = merge_regions(hits)
    return [region.hit for region in found], [len(region.image_ids) for region in found]


def _write_files(given: Settings, hits: Sequence[Hit], copy_to: Path | None, crops: Path | None) -> None:
    from cmpagl_core.search.answers import copy_files, write_crops

    if copy_to is not None:
        given.progress.say(f"copied {copy_files(hits, copy_to)} files to {copy_to}")
    if crops is not None:
        given.progress.say(f"wrote {write_crops(hits, crops)} crops to {crops}")


def _plain(format: RetrieveFormat) -> OutputFormat:
    return cast("OutputFormat", format)


def _show_hits(hits: Sequence[Hit], format: RetrieveFormat, merged: Sequence[int] | None) -> None:
    if format == "paths":
        for path in dict.fromkeys(str(hit.image.path) for hit in hits):
            echo(path)
        return
    if format == "geojson":
        from cmpagl_core.search.answers import geojson

        echo(geojson(hits))
        return
    tiles = [{}] * len(hits) if merged is None else [{"tiles": count} for count in merged]
    more = [] if merged is None else [Column("tiles")]
    if format == "table":
        rows = [{**_in_a_table(hit), **count} for hit, count in zip(hits, tiles, strict=True)]
        last = [Column(key) for key in ("date", "captions") if any(row[key] for row in rows)]
        emit(rows, [Column("rank"), Column("score", digits=3), Column("image_id", "image"), *more, *last])
        return
    from cmpagl_core.search.answers import document

    rows = [{**document(hit), **count} for hit, count in zip(hits, tiles, strict=True)]
    emit(rows, [*_columns(hits), *more], _plain(format))


def _columns(hits: Sequence[Hit]) -> list[Column]:
    from cmpagl_core.search.answers import place_of

    keys = ("rank", "image_id", "path", "score", "captions")
    places = dict.fromkeys(key for hit in hits for key in place_of(hit.image))
    return [Column(key, digits=3) for key in (*keys, *places)]


def _show_answers(queries: Sequence[Query], answers: Sequence[Sequence[Hit]], format: OutputFormat) -> None:
    """The hits of many queries: JSON has an object per query, other formats a row per hit."""
    from cmpagl_core.search.answers import document

    texts = [getattr(query, "text", "") for query in queries]
    pairs = list(zip(texts, answers, strict=True))
    if format in ("json", "jsonl"):
        documents = [{"query": text, "hits": [document(hit) for hit in hits]} for text, hits in pairs]
        emit(documents, ["query", "hits"], format)
    elif format == "table":
        rows = [{"query": text if hit.rank == 1 else "", **_in_a_table(hit)} for text, hits in pairs for hit in hits]
        columns = [Column("query"), Column("rank"), Column("score", digits=3), Column("image_id", "image")]
        emit(rows, columns)
    else:
        rows = [{"query": text, **document(hit)} for text, hits in pairs for hit in hits]
        emit(rows, [Column("query"), *_columns([hit for hits in answers for hit in hits])], format)


def _in_a_table(hit: Hit) -> dict[str, Any]:
    captions = in_short(hit.captions)
    date = "" if hit.image.scene is None else hit.image.scene.geo.date
    return {"rank": hit.rank, "score": hit.score, "image_id": hit.image.image_id, "date": date, "captions": captions}


def in_short(texts: Sequence[str]) -> str:
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
