"""Which images of an index may be found at all: by place, day and file. Applied before the search (ours)."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.files import read_json
from cmpagl_core.search.footprints import boxes, corners, dates, distance_m

if TYPE_CHECKING:
    from cmpagl_core.search.index import GalleryIndex

Box = tuple[float, float, float, float]
_DISTANCE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(m|km)\s*")
_DAY = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")


@dataclass(frozen=True)
class Filters:
    """All that is given must hold. bbox: west, south, east, north; west above east crosses the antimeridian.

    near: longitude and latitude, with the distance to an image's middle in within_m. inside: a GeoJSON file of
    polygons, which an image touches. since, until: days, both included; 2024 and 2024-05 mean the whole of it. path,
    scene: patterns of the whole path and of the file's name. Raises UsageError for what makes no sense.
    """

    bbox: Box | None = None
    near: tuple[float, float] | None = None
    within_m: float | None = None
    inside: Path | None = None
    since: str = ""
    until: str = ""
    path: str = ""
    scene: str = ""

    def __post_init__(self) -> None:
        if (self.near is None) != (self.within_m is None):
            raise UsageError("--near and --within belong together", hint="as in --near 12.5,55.7 --within 5km")
        for day in (self.since, self.until):
            _check_day(day)

    @property
    def are_given(self) -> bool:
        """Whether anything is filtered."""
        return self != Filters()

    def mask(self, index: GalleryIndex) -> NDArray[np.bool_] | None:
        """[N], the images that may be found; None for all.

        Raises DataError where places or days are asked for and the index knows none, or for a broken GeoJSON file.
        """
        if not self.are_given:
            return None
        allowed = np.ones(len(index), dtype=bool)
        if self.bbox is not None or self.near is not None or self.inside is not None:
            allowed &= self._by_place(index)
        if self.since or self.until:
            allowed &= self._by_day(index)
        if self.path or self.scene:
            allowed &= [self._by_name(path) for path in index.paths]
        return allowed

    def _by_place(self, index: GalleryIndex) -> NDArray[np.bool_]:
        corner = corners(index)
        if np.isnan(corner).all():
            raise DataError(
                f"index {index.info.name} has no image with coordinates", hint="leave the place out, or index GeoTIFFs"
            )
        box = boxes(corner)
        allowed = ~np.isnan(box[:, 0])
        if self.bbox is not None:
            allowed &= _touches(box, self.bbox)
        if self.near is not None and self.within_m is not None:
            allowed &= np.nan_to_num(distance_m(corner, *self.near), nan=np.inf) <= self.within_m
        if self.inside is not None:
            allowed[allowed] = _touches_polygons(corner[allowed], self.inside)
        return np.asarray(allowed)

    def _by_day(self, index: GalleryIndex) -> NDArray[np.bool_]:
        known = dates(index)
        if not any(known):
            raise DataError(f"index {index.info.name} has no image with a date", hint="leave --from and --to out")
        first, last = self.since, self.until
        return np.array(
            [bool(day) and day[: len(first)] >= first and (not last or day[: len(last)] <= last) for day in known]
        )

    def _by_name(self, path: str) -> bool:
        name = Path(path).name
        in_path = not self.path or fnmatch.fnmatchcase(path, self.path) or fnmatch.fnmatchcase(path, f"*/{self.path}")
        return in_path and (not self.scene or fnmatch.fnmatchcase(name, self.scene) or Path(name).stem == self.scene)


def parse_filters(
    bbox: str | None,
    near: str | None,
    within: str | None,
    inside: Path | None,
    since: str,
    until: str,
    path: str,
    scene: str,
) -> Filters:
    """Filters as the options of `retrieve` spell them. Raises UsageError."""
    return Filters(
        None if bbox is None else parse_box(bbox),
        None if near is None else parse_point(near),
        None if within is None else parse_distance(within),
        inside, since, until, path, scene,
    )  # fmt: skip


def parse_box(text: str) -> Box:
    """W,S,E,N in degrees. Raises UsageError."""
    west, south, east, north = _numbers(text, 4, "--bbox", "W,S,E,N in degrees, as in --bbox 12.4,55.6,12.7,55.8")
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
        raise UsageError(f"--bbox {text} is not a box", hint="write W,S,E,N in degrees, south below north")
    return west, south, east, north


def parse_point(text: str) -> tuple[float, float]:
    """LON,LAT in degrees. Raises UsageError."""
    lon, lat = _numbers(text, 2, "--near", "LON,LAT in degrees, as in --near 12.5,55.7")
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise UsageError(f"--near {text} is not on the Earth", hint="give LON,LAT in degrees, longitude first")
    return lon, lat


def parse_distance(text: str) -> float:
    """Metres of 500m or 5km. Raises UsageError."""
    found = _DISTANCE.fullmatch(text)
    if found is None:
        raise UsageError(f"--within {text} is not a distance", hint="write 500m or 5km")
    return float(found[1]) * (1000 if found[2] == "km" else 1)


def _numbers(text: str, count: int, option: str, usage: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not np.isfinite(values).all():
        raise UsageError(f"{option} {text!r} is not {count} numbers", hint=f"give {usage}")
    return values


def _check_day(text: str) -> None:
    if not text:
        return
    try:
        if not _DAY.fullmatch(text):
            raise ValueError
        date.fromisoformat((text + "-01-01")[:10] if len(text) == 4 else (text + "-01")[:10])
    except ValueError as error:
        raise UsageError(f"{text!r} is not a date", hint="write 2024, 2024-05 or 2024-05-31") from error


def _touches(box: NDArray[np.float64], wanted: Box) -> NDArray[np.bool_]:
    """Whether boxes [N, 4] and the wanted one have a point in common, also across the antimeridian."""
    west, south, east, north = wanted
    if west > east:
        east += 360
    apart = (box[:, 3] < south) | (box[:, 1] > north)
    touching = np.zeros(len(box), dtype=bool)
    for turn in (-360, 0, 360):
        touching |= (box[:, 2] + turn >= west) & (box[:, 0] + turn <= east)
    return np.asarray(touching & ~apart)


def _touches_polygons(corner: NDArray[np.float64], path: Path) -> NDArray[np.bool_]:
    try:
        import shapely
        from shapely.geometry import shape
    except ImportError as error:
        raise UsageError("shapely is not installed", hint="pip install 'cmpagl[geo]'") from error
    try:
        area = shapely.union_all([shape(one) for one in _geometries(read_json(path))])
    except (TypeError, KeyError, ValueError, AttributeError, IndexError, shapely.errors.ShapelyError) as error:
        raise DataError(f"{path} is no GeoJSON of polygons", hint="see RFC 7946: longitude first") from error
    if area.is_empty or area.area == 0:
        raise DataError(f"{path} has no area", hint="give polygons in longitude and latitude")
    shapely.prepare(area)
    return np.asarray(shapely.intersects(area, shapely.polygons(corner)), dtype=bool)


def _geometries(content: Any) -> list[Any]:
    """The geometries of a GeoJSON document."""
    if content["type"] == "FeatureCollection":
        return [feature["geometry"] for feature in content["features"] if feature["geometry"] is not None]
    return [content["geometry"] if content["type"] == "Feature" else content]
