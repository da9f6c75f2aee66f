"""Location and date of an image: CRS, transform, bounds, ground sampling distance, acquisition date."""

from __future__ import annotations

import json
import math
import re
from datetime import date
from pathlib import Path
from typing import Any, Literal

from rasterio.crs import CRS
from rasterio.io import DatasetReader
from rasterio.transform import Affine, RPCTransformer, from_gcps

from cmpagl_core.errors import DataError
from cmpagl_core.files import read_json
from cmpagl_core.imagery.gdal import UNREADABLE
from cmpagl_core.imagery.image_ref import Geo

_METRES_A_DEGREE = 111_320.0
_MAX_STAC_BYTES = 4 << 20
_IN_A_NAME = re.compile(r"(?<!\d)((?:19|20)\d\d)([-_.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)")
_IN_A_TAG = re.compile(r"(\d{4})[-:/](\d\d)[-:/](\d\d)")
_CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))


def geo_of(path: Path, dataset: DatasetReader) -> Geo:
    """What a file, its name and a STAC item beside it say, inside `gdal()`; ground control points and RPCs: about."""
    crs, transform, exact = _georeference(dataset)
    taken, by = _date(path, dataset)
    return Geo(_crs_name(crs), transform, exact, taken, by)


def gsd_m(geo: Geo, width: int, height: int) -> float | None:
    """Metres a pixel in the middle of an image; None where its place is not known or not in a known unit."""
    if geo.transform is None or not geo.crs:
        return None
    try:
        crs = CRS.from_user_input(geo.crs)
        a, b, _, d, e, _ = geo.transform
        if crs.is_geographic:
            latitude = max(-90.0, min(90.0, d * width / 2 + e * height / 2 + geo.transform[5]))
            across = _METRES_A_DEGREE * math.cos(math.radians(latitude))
            metres = math.sqrt(
                math.hypot(a * across, d * _METRES_A_DEGREE) * math.hypot(b * across, e * _METRES_A_DEGREE)
            )
        else:
            metres = math.sqrt(math.hypot(a, d) * math.hypot(b, e)) * crs.linear_units_factor[1]
    except UNREADABLE:
        return None
    return metres if math.isfinite(metres) and metres > 0 else None


def _georeference(dataset: DatasetReader) -> tuple[CRS | None, tuple[float, ...] | None, Literal["", "gcps", "rpcs"]]:
    """CRS, transform, and what it was reckoned from where the file has none of its own."""
    try:
        if not dataset.transform.is_identity and _is_sound(dataset.transform):
            return dataset.crs, tuple(dataset.transform)[:6], ""
        points, crs = dataset.gcps
        if len(points) >= 3 and _is_sound(found := from_gcps(points)):
            return crs, tuple(found)[:6], "gcps"
        if dataset.rpcs is not None and _is_sound(found := _from_rpcs(dataset)):
            return CRS.from_epsg(4326), tuple(found)[:6], "rpcs"
    except UNREADABLE:
        pass  # a place that makes no sense is none
    return None, None, ""


def _from_rpcs(dataset: DatasetReader) -> Affine:
    """The plane that fits the corners at the mean height."""
    height = dataset.rpcs.height_off
    with RPCTransformer(dataset.rpcs) as transformer:
        rows = [row * dataset.height for _, row in _CORNERS]
        columns = [column * dataset.width for column, _ in _CORNERS]
        xs, ys = transformer.xy(rows, columns, zs=[height] * len(rows), offset="ul")
    (left, right, below, _), (top, beside, bottom, _) = xs, ys
    across, down = 1 / dataset.width, 1 / dataset.height
    return Affine(
        (right - left) * across, (below - left) * down, left, (beside - top) * across, (bottom - top) * down, top
    )


def _is_sound(transform: Affine) -> bool:
    return all(math.isfinite(value) for value in tuple(transform)[:6]) and transform.determinant != 0


def _crs_name(crs: CRS | None) -> str:
    """EPSG:32633 where it has a number, WKT where it has none."""
    if crs is None:
        return ""
    try:
        code = crs.to_epsg()
        return f"EPSG:{code}" if code is not None else str(crs.to_wkt())
    except UNREADABLE:
        return ""


def _date(path: Path, dataset: DatasetReader) -> tuple[str, str]:
    """The day it was taken, as ISO 8601, and who says so. The tag for the file's own date comes last."""
    tags, imagery = dataset.tags(), dataset.tags(ns="IMAGERY")
    told = (
        (_from_stac(path), "STAC item"),
        (_from_tag(imagery.get("ACQUISITIONDATETIME", "")), "acquisition tag"),
        (date_of_name(path.name), "file name"),
        (_from_tag(tags.get("NITF_IDATIM", "")) or date_of_name(tags.get("NITF_IDATIM", "")[:8]), "NITF header"),
        (_from_tag(tags.get("TIFFTAG_DATETIME", "")), "TIFF tag"),
    )
    return next(((taken, by) for taken, by in told if taken), ("", ""))


def _from_stac(path: Path) -> str:
    item = path.with_suffix(".json")
    try:
        if not item.is_file() or item.stat().st_size > _MAX_STAC_BYTES:
            return ""
        content: Any = read_json(item, json.loads)
    except (DataError, OSError):
        return ""
    if (
        not isinstance(content, dict)
        or "stac_version" not in content
        or not isinstance(content.get("properties"), dict)
    ):
        return ""
    said = content["properties"].get("datetime") or content["properties"].get("start_datetime")
    return _from_tag(said) if isinstance(said, str) else ""


def _from_tag(text: str) -> str:
    found = _IN_A_TAG.match(text.strip())
    return _real(found[1], found[2], found[3]) if found is not None else ""


def date_of_name(name: str) -> str:
    """The first day that a file name holds, as ISO 8601; "" for none."""
    for found in _IN_A_NAME.finditer(name):
        if taken := _real(found[1], found[3], found[4]):
            return taken
    return ""


def _real(year: str, month: str, day: str) -> str:
    try:
        return date(int(year), int(month), int(day)).isoformat()
    except ValueError:
        return ""
