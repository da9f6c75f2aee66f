"""An index, or hits, as a table for GIS and data tools: GeoParquet or GeoPackage, with footprints (extra `geo`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cmpagl_core.errors import CmpaglError, UsageError
from cmpagl_core.files import atomic_path
from cmpagl_core.imagery.image_ref import ImageRef, Window
from cmpagl_core.search.index import GalleryIndex
from cmpagl_core.search.query import Hit

CRS = "EPSG:4326"
_LAYER = "images"


def export_index(index: GalleryIndex, out: Path, with_features: bool = False) -> int:
    """Write an index to `out`, a .parquet or a .gpkg file, and return how many of its images have a place.

    Footprints are in longitude and latitude; an image without coordinates has none. with_features: a column with
    each image's feature, in a .parquet file. Raises UsageError for another suffix, features in a .gpkg, or when
    geopandas is not installed, CmpaglError when the disk refuses.
    """
    suffix = out.suffix.lower()
    if suffix not in (".parquet", ".gpkg"):
        raise UsageError(f"{out} has neither the suffix .parquet nor .gpkg", hint="choose one of them")
    if with_features and suffix == ".gpkg":
        raise UsageError("a GeoPackage has no lists, so it cannot store features", hint="write a .parquet file")
    images = [index.image(row) for row in range(len(index))]
    columns = _about(images)
    if with_features:
        columns["feature"] = list(np.asarray(index.image_features))
    return _write(columns, images, out, _LAYER)


def export_hits(hits: Sequence[Hit], out: Path) -> int:
    """Write hits to `out`, a .gpkg file, in the order of their ranks, and return how many have a place.

    Raises UsageError for another suffix or when geopandas is not installed, CmpaglError when the disk refuses.
    """
    if out.suffix.lower() != ".gpkg":
        raise UsageError(f"{out} does not have the suffix .gpkg", hint="rename it")
    images = [hit.image for hit in hits]
    columns = {
        "rank": [hit.rank for hit in hits],
        "score": [hit.score for hit in hits],
        **_about(images),
        "captions": [" | ".join(hit.captions) for hit in hits],
    }
    return _write(columns, images, out, "hits")


def _about(images: list[ImageRef]) -> dict[str, Any]:
    return {
        "image_id": [image.image_id for image in images],
        "path": [str(image.path) for image in images],
        **_windows(images),
        "crs": ["" if image.scene is None else image.scene.geo.crs for image in images],
        "date": ["" if image.scene is None else image.scene.geo.date for image in images],
    }


def _write(columns: dict[str, Any], images: list[ImageRef], out: Path, layer: str) -> int:
    """Write columns with the images' footprints; the suffix says how. Returns how many images have one."""
    try:
        import geopandas
    except ImportError as error:
        raise UsageError("geopandas is not installed", hint="pip install 'cmpagl[geo]'") from error
    table = geopandas.GeoDataFrame(columns, geometry=_footprints(images), crs=CRS)
    with atomic_path(out) as partial:
        try:
            if out.suffix.lower() == ".parquet":
                table.to_parquet(partial, index=False)
            else:
                named = partial.with_name(f"{partial.name}.gpkg")  # GDAL warns of another suffix
                table.to_file(named, layer=layer, driver="GPKG", engine="pyogrio")
                named.replace(partial)
        except OSError:
            raise
        except Exception as error:  # GDAL and Arrow have errors of their own
            raise CmpaglError(f"{out} cannot be written ({' '.join(str(error).split())[:200]})") from error
    return int(table.geometry.notna().sum())


def _windows(images: list[ImageRef]) -> dict[str, list[int | None]]:
    """Left, top, width and height in pixels, None for a whole file."""
    names = ("left", "top", "width", "height")
    return {
        f"window_{name}": [None if image.window is None else getattr(image.window, name) for image in images]
        for name in names
    }


def _footprints(images: list[ImageRef]) -> list[Any]:
    """Polygons in longitude and latitude; None where there are no coordinates."""
    import geopandas
    from shapely import Polygon

    found: list[Any] = [None] * len(images)
    by_crs: dict[str, list[int]] = {}
    for row, image in enumerate(images):
        if image.scene is not None and image.scene.geo.crs and image.scene.geo.transform is not None:
            by_crs.setdefault(image.scene.geo.crs, []).append(row)
    for crs, rows in by_crs.items():
        corners = geopandas.GeoSeries([Polygon(_corners(images[row])) for row in rows], crs=crs).to_crs(CRS)
        for row, polygon in zip(rows, corners, strict=True):
            found[row] = polygon
    return found


def _corners(image: ImageRef) -> list[tuple[float, float]]:
    """The four corners in the CRS of the file, in order."""
    assert image.scene is not None
    assert image.scene.geo.transform is not None
    window = image.window or Window(0, 0, image.scene.width, image.scene.height)
    a, b, c, d, e, f = image.scene.geo.transform
    left, top = window.left, window.top
    right, bottom = left + window.width, top + window.height
    pixels = ((left, top), (right, top), (right, bottom), (left, bottom))
    return [(a * column + b * row + c, d * column + e * row + f) for column, row in pixels]
