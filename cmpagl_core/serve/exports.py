"""Chosen hits as a file: paths, CSV, GeoJSON, GeoPackage (extra `geo`), or a ZIP of crops."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, get_args

from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.files import scratch_folder
from cmpagl_core.search.answers import document, geojson, place_of
from cmpagl_core.search.index import GalleryIndex
from cmpagl_core.search.query import Hit
from cmpagl_core.serve.pictures import Pictures
from cmpagl_core.sheets import write_sheet

Format = Literal["paths", "csv", "geojson", "gpkg", "zip"]
MAX_HITS, MAX_CROPS = 1000, 200
_SUFFIXES = {"paths": "txt"}
MEDIA_TYPES: dict[Format, str] = {
    "paths": "text/plain; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "geojson": "application/geo+json",
    "gpkg": "application/geopackage+sqlite3",
    "zip": "application/zip",
}


@dataclass(frozen=True)
class ExportRequest:
    """hits: rows of the index with their scores, in the order that they are written in."""

    format: Format
    hits: tuple[tuple[int, float], ...]


@dataclass(frozen=True, eq=False)
class ExportedFile:
    """A file to save."""

    content: bytes
    name: str
    media_type: str


def read_export(body: bytes, images: int) -> ExportRequest:
    """{"format": ..., "hits": [{"row", "score"}]}. images: those of the index. Raises UsageError."""
    hint = 'send {"format": "csv", "hits": [{"row": 0, "score": 0.5}]}'
    try:
        content = json.loads(body)
        format, hits = content["format"], content["hits"]
        pairs = tuple((hit["row"], float(hit["score"])) for hit in hits)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise UsageError("the body is no export", hint=hint) from error
    if format not in get_args(Format):
        raise UsageError(f"format is {str(format)[:50]!r}", hint=f"write one of {', '.join(get_args(Format))}")
    most = MAX_CROPS if format == "zip" else MAX_HITS
    if not 0 < len(pairs) <= most:
        raise UsageError(f"{len(pairs):,} hits are chosen", hint=f"choose 1 to {most:,}")
    if any(type(row) is not int or not 0 <= row < images or not abs(score) <= 1e6 for row, score in pairs):
        raise UsageError("a hit is not in the index", hint=hint)
    return ExportRequest(format, pairs)


def can_write_geopackage() -> bool:
    """Whether the extra `geo` is there."""
    return find_spec("geopandas") is not None and find_spec("pyogrio") is not None


def exported(gallery: GalleryIndex, pictures: Pictures, asked: ExportRequest) -> ExportedFile:
    """The file. Raises UsageError for a GeoPackage without geopandas, DataError for a crop of no image at all."""
    hits = [
        Hit(rank, gallery.image(row), score, tuple(gallery.captions_of(row)))
        for rank, (row, score) in enumerate(asked.hits, start=1)
    ]
    if asked.format == "zip":
        content = _crops(hits, [row for row, _ in asked.hits], pictures)
    elif asked.format == "gpkg":
        content = _geopackage(hits)
    else:
        content = _text(asked.format, hits).encode("utf-8", "surrogateescape")
    name = f"hits-{gallery.info.name}.{_SUFFIXES.get(asked.format, asked.format)}"
    return ExportedFile(content, name, MEDIA_TYPES[asked.format])


def _text(format: Format, hits: Sequence[Hit]) -> str:
    if format == "paths":
        return "".join(f"{path}\n" for path in dict.fromkeys(str(hit.image.path) for hit in hits))
    return geojson(hits) + "\n" if format == "geojson" else _csv(hits)


def _csv(hits: Sequence[Hit]) -> str:
    places = dict.fromkeys(key for hit in hits for key in place_of(hit.image))
    columns = ["rank", "image_id", "path", "score", "captions", *places]
    stream = io.StringIO(newline="")
    abouts = [document(hit) for hit in hits]
    write_sheet(stream, columns, ([about.get(column) for column in columns] for about in abouts))
    return stream.getvalue()


def _geopackage(hits: Sequence[Hit]) -> bytes:
    from cmpagl_core.search.geo_export import export_hits

    with scratch_folder("serve") as folder:
        path = folder / "hits.gpkg"
        export_hits(hits, path)
        return path.read_bytes()


def _crops(hits: Sequence[Hit], rows: Sequence[int], pictures: Pictures) -> bytes:
    """PNGs as `retrieve --crops` names them; images that cannot be read are named in a text beside them."""
    stream, missing = io.BytesIO(), []
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for hit, row in zip(hits, rows, strict=True):
            try:
                pixels = pictures.pixels(row)
            except DataError as error:
                missing.append(str(error))
                continue
            png = io.BytesIO()
            pixels.save(png, "PNG")
            window = hit.image.window
            place = "" if window is None else f"-{window.left}-{window.top}"
            archive.writestr(f"{hit.rank:03d}-{hit.image.path.stem}{place}.png", png.getvalue())
        if missing:
            archive.writestr("missing.txt", "\n".join(missing) + "\n")
    if len(missing) == len(hits):
        raise DataError(f"no chosen image can be read: {missing[0]}")
    return stream.getvalue()
