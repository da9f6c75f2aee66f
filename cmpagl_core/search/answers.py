"""Hits for other programs: GeoJSON, copied files and crops; and touching tiles merged into regions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.files import atomic_path
from cmpagl_core.imagery.image_ref import ImageRef, Window
from cmpagl_core.search.footprints import corners_of
from cmpagl_core.search.query import Hit

_DIGITS = 7  # of a degree: a centimetre


def place_of(image: ImageRef) -> dict[str, Any]:
    """The window of a tile, and the place and day of an image that has them."""
    window = {} if image.window is None else {"window": astuple(image.window)}
    if image.scene is None:
        return window
    geo = image.scene.geo
    about = {"bounds_from": geo.about} if geo.about else {}
    return {**window, "bounds": image.bounds, "crs": geo.crs or None, "date": geo.date or None, **about}


def document(hit: Hit) -> dict[str, Any]:
    """A hit as one JSON object."""
    return {
        "rank": hit.rank,
        "image_id": hit.image.image_id,
        "path": str(hit.image.path),
        "score": hit.score,
        "captions": hit.captions,
        **place_of(hit.image),
    }


def geojson(hits: Sequence[Hit]) -> str:
    """RFC 7946: a feature per hit with its footprint in longitude and latitude, cut at the antimeridian, or null."""
    features = []
    for hit in hits:
        about = document(hit)
        for key in ("bounds", "crs"):  # which would be read as the footprint's
            about.pop(key, None)
        features.append(
            {"type": "Feature", "id": hit.image.image_id, "geometry": footprint(hit.image), "properties": about}
        )
    return json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False, indent=1)


def footprint(image: ImageRef) -> Mapping[str, Any] | None:
    """An image's outline as a GeoJSON geometry in longitude and latitude; None where its place is not known."""
    corner = corners_of(image)
    return None if corner is None or not np.isfinite(corner).all() else _geometry(corner)


def copy_files(hits: Sequence[Hit], folder: Path) -> int:
    """Copy the files of hits into a folder, each once, best first in their names. Returns how many.

    Raises DataError for a file that is gone, CmpaglError when the disk refuses.
    """
    files = {hit.image.path: hit for hit in reversed(hits)}
    for path, hit in files.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(folder / f"{hit.rank:03d}-{path.name}") as partial:
                shutil.copyfile(path, partial)
        except FileNotFoundError as error:
            raise DataError(f"{path} does not exist", hint="update the index with `cmpagl index`") from error
        except OSError as error:
            raise CmpaglError(f"{path} cannot be copied to {folder} ({error.strerror})") from error
    return len(files)


def write_crops(hits: Sequence[Hit], folder: Path) -> int:
    """Write each hit as the model saw it, a PNG of its piece. Returns how many. Raises as `copy_files` does."""
    from cmpagl_core.imagery.reader import open_ref  # Pillow and rasterio, which other answers do without

    for hit in hits:
        pixels = open_ref(hit.image)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / f"{hit.rank:03d}-{_file_name(hit.image)}.png") as partial:
            pixels.save(partial, format="PNG")
    return len(hits)


@dataclass(frozen=True)
class Region:
    """Tiles of one file that touch, as one piece: the box around them, the best score, and their ids, best first."""

    hit: Hit
    image_ids: tuple[str, ...]


def merge_regions(hits: Sequence[Hit]) -> list[Region]:
    """Join tiles that touch or overlap, transitively; other hits stay alone. Ranks are recounted."""
    groups: list[list[Hit]] = []
    for hit in hits:
        touching = [group for group in groups if any(_touch(hit.image, other.image) for other in group)]
        groups = [group for group in groups if group not in touching]
        groups.append([*(one for group in touching for one in group), hit])
    groups = [sorted(group, key=lambda one: one.rank) for group in groups]
    groups.sort(key=lambda group: group[0].rank)
    return [_region(rank, group) for rank, group in enumerate(groups, start=1)]


def _region(rank: int, group: Sequence[Hit]) -> Region:
    best = group[0]
    windows = [hit.image.window for hit in group if hit.image.window is not None]
    image = best.image
    if len(group) > 1 and windows:
        left, top = min(one.left for one in windows), min(one.top for one in windows)
        right = max(one.left + one.width for one in windows)
        bottom = max(one.top + one.height for one in windows)
        image = replace(image, window=Window(left, top, right - left, bottom - top))
    captions = tuple(dict.fromkeys(text for hit in group for text in hit.captions))
    merged = Hit(rank, image, best.score, captions)
    return Region(merged, tuple(hit.image.image_id for hit in group))


def _touch(one: ImageRef, other: ImageRef) -> bool:
    a, b = one.window, other.window
    if one.path != other.path or a is None or b is None:
        return False
    beside = a.left <= b.left + b.width and b.left <= a.left + a.width
    above = a.top <= b.top + b.height and b.top <= a.top + a.height
    at_a_corner = (a.left + a.width == b.left or b.left + b.width == a.left) and (
        a.top + a.height == b.top or b.top + b.height == a.top
    )
    return beside and above and not at_a_corner


def _geometry(corner: NDArray[np.float64]) -> Mapping[str, Any]:
    """A polygon, anticlockwise; two where it crosses the antimeridian, each a box."""
    lon = corner[:, 0]
    if np.ptp(lon) > 180:
        lon = np.where(lon < 0, lon + 360, lon)
        south, north = float(corner[:, 1].min()), float(corner[:, 1].max())
        halves = [(float(lon.min()), 180.0), (-180.0, float(lon.max()) - 360)]
        rings = [[[west, south], [east, south], [east, north], [west, north], [west, south]] for west, east in halves]
        return {"type": "MultiPolygon", "coordinates": [[_rounded(ring)] for ring in rings]}
    ring = corner.tolist()
    area = sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(ring, [*ring[1:], ring[0]], strict=True))
    ring = ring if area > 0 else ring[::-1]
    return {"type": "Polygon", "coordinates": [_rounded([*ring, ring[0]])]}


def _rounded(ring: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[round(value, _DIGITS) for value in point] for point in ring]


def _file_name(image: ImageRef) -> str:
    window = "" if image.window is None else f"-{image.window.left}-{image.window.top}"
    return f"{image.path.stem}{window}"
