"""`cmpagl retrieve`: find images by text, by image, or by a mixture of both."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from cmpagl_cli.commands.options import BandsOption, IndexesOption, OutputFormat, Settings, StretchOption, settings
from cmpagl_cli.hits import HitFormat, answers_as_text, hits_as_text
from cmpagl_cli.views import echo

if TYPE_CHECKING:
    from cmpagl_core.imagery.reading import Reading
    from cmpagl_core.search.index import GalleryIndex
    from cmpagl_core.search.query import Hit, Query

RetrieveFormatOption = Annotated[
    HitFormat,
    typer.Option("--format", help="Format of the result; paths: only file paths; geojson, gpkg: footprints."),
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
    index: IndexesOption = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", metavar="FILE", help="Search an exported feature set instead of an index."),
    ] = None,
    run: Annotated[
        str | None, typer.Option("--run", metavar="NAME|DIR", help="Run that encodes the query. Default: the index's.")
    ] = None,
    rerank: Annotated[
        Literal["none", "itm", "csls", "dual-softmax"],
        typer.Option(
            "--rerank",
            help="itm: re-score the top 32 with the ITM head. csls, dual-softmax: rank by cosine minus each image's "
            "offset, from the run's training captions. Both need the run.",
        ),
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
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="Show the images in the terminal (extra `thumbnails`).")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the result to a file instead of stdout.")
    ] = None,
    format: RetrieveFormatOption = "table",
) -> None:
    """Find images by text, by example, or by a mixture of both in the newest index.

    If there is no index, one of all images of the newest run's data set is built first. Filters apply before the
    search, so they never reduce the number of hits below K if there are K matches. Scores are cosines; with --rerank
    itm, cosine + match probability; with csls or dual-softmax, cosine - offset of the image. --queries runs many text
    queries at once.

    Examples:
      cmpagl retrieve "two baseball fields next to a road"
      cmpagl retrieve "airport near sea" -k 20 --gallery found.html --open
      cmpagl retrieve "harbour" --plus "2:storage tanks" --minus ships --plus mine.jpg
      cmpagl retrieve "solar farm" --near 12.5,55.7 --within 20km --from 2024-05 --format geojson
      cmpagl retrieve --image mine.jpg --diverse --crops found
      cmpagl retrieve "harbour" --rerank csls --format gpkg --out harbours.gpkg
      cmpagl retrieve "harbour" --index north --index south
      cmpagl retrieve --queries queries.txt -k 5 --format jsonl
    """
    from cmpagl_core.errors import UsageError
    from cmpagl_core.search.filters import parse_filters
    from cmpagl_core.search.narrowing import Narrowed
    from cmpagl_core.search.opening import open_joined, open_searcher

    if until in ("images", "captions"):
        raise UsageError("--to is a date", hint="for captions call `cmpagl caption IMAGE`")
    asked = _queries(text, image, like, plus or [], minus or [], queries, _reading(image, bands, stretch))
    _check_output(queries, format, out, thumbnails)
    one_alone = rerank == "itm" or gallery is not None or open_page or regions or crops or copy_to
    if queries is not None and one_alone:
        raise UsageError(
            "--queries prints one list of hits per query",
            hint="leave out --rerank itm, --regions, --gallery, --open, --copy-to and --crops",
        )
    filters = parse_filters(bbox, near, within, inside, since, until, path, scene)
    given = settings(ctx)
    page = gallery if gallery is not None or not open_page else given.workspace.root / "gallery.html"
    if index is not None and len(index) > 1:
        if features is not None or run is not None or rerank in ("csls", "dual-softmax"):
            raise UsageError("several indexes are searched by their own cosines", hint="leave out the other options")
        searcher = open_joined(given.session, index)
    else:
        searcher = open_searcher(given.session, index[0] if index else None, features, run)
    if rerank in ("csls", "dual-softmax"):
        from cmpagl_core.search.query_bank import with_bank

        searcher = with_bank(given.session, searcher, rerank, run)
    narrowed = Narrowed(filters.mask(searcher.gallery), min_score, diverse)
    if queries is not None:
        _put(answers_as_text(asked, searcher.search(asked, k, narrowed), cast(OutputFormat, format)), out)
        return
    if rerank == "itm":
        hits = searcher.search_with_itm(asked[0], k, narrowed)
    else:
        hits = searcher.search(asked, k, narrowed)[0]
    if len(hits) < k and (filters.are_given or min_score is not None):
        given.progress.say(f"the filters leave {len(hits)} images")
    hits, more = _merged(hits) if regions else (hits, [{}] * len(hits))
    if rerank != "none" and format != "table":
        more = [{**columns, "rerank": rerank} for columns in more]
    query = _GalleryQuery(searcher.gallery, text or like or "", image, _SCORES[rerank])
    if format == "gpkg":
        from cmpagl_core.search.geo_export import export_hits

        assert out is not None
        given.progress.say(f"{export_hits(hits, out)} of {len(hits)} hits have a place: {out}")
    elif format == "html":
        _put(query.page(hits, given), out)
    else:
        _put(hits_as_text(hits, format, more, thumbnails), out)
    _write_files(given, hits, copy_to, crops)
    if page is not None:
        from cmpagl_core.files import write_text

        write_text(page, query.page(hits, given))
        given.progress.say(f"gallery: {page}")
        if open_page:
            import webbrowser

            webbrowser.open(page.absolute().as_uri())


_SCORES = {
    "none": "cosines",
    "itm": "cosine + match probability",
    "csls": "cosine - CSLS offset from training captions",
    "dual-softmax": "cosine - dual softmax offset from training captions",
}


@dataclass(frozen=True)
class _GalleryQuery:
    """What the page of hits says of the query."""

    gallery: GalleryIndex
    text: str
    image: Path | None
    scores: str

    def page(self, hits: Sequence[Hit], given: Settings) -> str:
        from cmpagl_core.search.gallery import GalleryQuery, render_gallery

        info, count = self.gallery.info, len(self.gallery)
        query = GalleryQuery(self.text, self.image, info.name, count, info.model, self.scores, info.reading)
        return render_gallery(query, hits, given.progress)


def _check_output(queries: Path | None, format: HitFormat, out: Path | None, thumbnails: bool) -> None:
    from cmpagl_core.errors import UsageError

    if queries is not None and (thumbnails or format in ("paths", "geojson", "gpkg", "html")):
        raise UsageError(
            "--queries prints one list of hits per query", hint="choose a table, json, jsonl, csv, markdown or latex"
        )
    if format == "gpkg" and out is None:
        raise UsageError("a GeoPackage is a file", hint="name it: --out hits.gpkg")
    on_terminal = sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).columns > 0
    if thumbnails and (format != "table" or out is not None or not on_terminal):
        raise UsageError("--thumbnails are for a table in a terminal", hint="leave it out, or use --gallery FILE")


def _put(text: str, out: Path | None) -> None:
    """Write text to a file, or to stdout."""
    if out is None:
        if text:
            echo(text)
        return
    from cmpagl_core.files import write_text

    write_text(out, text + "\n")


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
    from cmpagl_core.search.query import ImageQuery, ItemQuery, TextQuery, added_together, parse_part, read_queries

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
    more = (*(parse_part(part) for part in plus), *(parse_part(part, -1.0) for part in minus))
    return [added_together(first, more)]


def _reading(image: Path | None, bands: str | None, stretch: str | None) -> Reading | None:
    """How the query image is read; None for the way of the index."""
    from cmpagl_core.errors import UsageError
    from cmpagl_core.imagery.reading import AUTO, Reading

    if bands is None and stretch is None:
        return None
    if image is None:
        raise UsageError("--bands and --stretch say how the image of --image is read", hint="leave them out")
    return Reading(bands or AUTO, stretch or AUTO)


def _merged(hits: Sequence[Hit]) -> tuple[list[Hit], list[dict[str, Any]]]:
    """Hits whose touching tiles are one, and of how many tiles each is."""
    from cmpagl_core.search.answers import merge_regions

    found = merge_regions(hits)
    return [region.hit for region in found], [{"tiles": len(region.image_ids)} for region in found]


def _write_files(given: Settings, hits: Sequence[Hit], copy_to: Path | None, crops: Path | None) -> None:
    from cmpagl_core.search.answers import copy_files, write_crops

    if copy_to is not None:
        given.progress.say(f"copied {copy_files(hits, copy_to)} files to {copy_to}")
    if crops is not None:
        given.progress.say(f"wrote {write_crops(hits, crops)} crops to {crops}")
