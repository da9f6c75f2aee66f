"""Where the images of an index lie, in longitude and latitude, and when they were taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.imagery.image_ref import Geo, ImageRef, Window

if TYPE_CHECKING:
    from cmpagl_core.search.index import GalleryIndex

LON_LAT = "EPSG:4326"
_EARTH_RADIUS_M = 6_371_008.8  # the mean radius


def corners(index: GalleryIndex) -> NDArray[np.float64]:
    """Longitude and latitude of each image's corners, [N, 4, 2], clockwise from its first pixel; NaN if unknown."""
    found = np.full((len(index), 4, 2), np.nan)
    if index.scenes is None:
        return found
    of_scene: dict[int, list[int]] = {}
    for row, place in enumerate(index.scenes.of_row.tolist()):
        if place >= 0:
            of_scene.setdefault(place, []).append(row)
    for rows in of_scene.values():
        scene = index.scenes.scene(rows[0])
        if scene is None or scene.geo.transform is None or not scene.geo.crs:
            continue
        whole = (0, 0, scene.width, scene.height)
        windows = np.array([whole] * len(rows)) if index.windows is None else np.array(index.windows[rows])
        windows[windows[:, 2] == 0] = whole  # of a file that is not cut
        found[rows] = _lon_lat(scene.geo, _pixel_corners(windows))
    return found


def corners_of(image: ImageRef) -> NDArray[np.float64] | None:
    """Those of one image, [4, 2]; None where its place is not known."""
    scene = image.scene
    if scene is None or scene.geo.transform is None or not scene.geo.crs:
        return None
    window = image.window or Window(0, 0, scene.width, scene.height)
    pixels = _pixel_corners(np.array([(window.left, window.top, window.width, window.height)]))
    return np.asarray(_lon_lat(scene.geo, pixels)[0])


def boxes(corner: NDArray[np.float64]) -> NDArray[np.float64]:
    """West, south, east and north [N, 4] of corners [N, 4, 2]. East is above 180 where the antimeridian is crossed."""
    lon, lat = corner[..., 0], corner[..., 1]
    crossing = np.nanmax(np.append(lon, np.full((len(lon), 1), -np.inf), axis=1), axis=1) - np.nanmin(
        np.append(lon, np.full((len(lon), 1), np.inf), axis=1), axis=1
    )
    lon = np.where((crossing[:, None] > 180) & (lon < 0), lon + 360, lon)
    return np.stack([lon.min(axis=1), lat.min(axis=1), lon.max(axis=1), lat.max(axis=1)], axis=1)


def dates(index: GalleryIndex) -> list[str]:
    """Day or moment of each image, ISO 8601, "" if unknown."""
    if index.scenes is None:
        return [""] * len(index)
    known: dict[int, str] = {-1: ""}
    for row, place in enumerate(index.scenes.of_row.tolist()):
        if place not in known:
            scene = index.scenes.scene(row)
            known[place] = "" if scene is None else scene.geo.date
    return [known[place] for place in index.scenes.of_row.tolist()]


def distance_m(corner: NDArray[np.float64], lon: float, lat: float) -> NDArray[np.float64]:
    """Great-circle distance [N] from a point to the middle of each image; NaN where that is not known."""
    box = boxes(corner)
    middle_lon, middle_lat = np.radians((box[:, 0] + box[:, 2]) / 2), np.radians((box[:, 1] + box[:, 3]) / 2)
    here_lon, here_lat = np.radians(lon), np.radians(lat)
    half = (
        np.sin((middle_lat - here_lat) / 2) ** 2
        + np.cos(middle_lat) * np.cos(here_lat) * np.sin((middle_lon - here_lon) / 2) ** 2
    )
    return np.asarray(2 * _EARTH_RADIUS_M * np.arcsin(np.sqrt(np.clip(half, 0, 1))))


def _pixel_corners(windows: NDArray[np.int64]) -> NDArray[np.float64]:
    """[N, 4, 2] columns and rows of windows [N, 4]."""
    left, top = windows[:, 0], windows[:, 1]
    right, bottom = left + windows[:, 2], top + windows[:, 3]
    columns = np.stack([left, right, right, left], axis=1)
    rows = np.stack([top, top, bottom, bottom], axis=1)
    return np.stack([columns, rows], axis=2).astype(np.float64)


def _lon_lat(geo: Geo, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    from rasterio.warp import transform

    assert geo.transform is not None
    a, b, c, d, e, f = geo.transform
    xs = a * pixels[..., 0] + b * pixels[..., 1] + c
    ys = d * pixels[..., 0] + e * pixels[..., 1] + f
    lon, lat = transform(geo.crs, LON_LAT, xs.ravel().tolist(), ys.ravel().tolist())
    wrapped = (np.array(lon) + 180) % 360 - 180
    return np.stack([wrapped, np.array(lat)], axis=1).reshape(pixels.shape)
