"""Filters come before the search and mean what they say: compared with a look at every image."""

from __future__ import annotations

import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.imagery.tiles import Tiling
from cmpagl_core.progress import Silent
from cmpagl_core.search.answers import geojson, merge_regions
from cmpagl_core.search.filters import Filters, parse_box, parse_distance, parse_point
from cmpagl_core.search.footprints import boxes, corners, distance_m
from cmpagl_core.search.gallery_source import folder_source
from cmpagl_core.search.index import GalleryIndex
from cmpagl_core.search.indexing import build_index
from cmpagl_core.search.narrowing import Narrowed
from cmpagl_core.search.query import TextQuery
from cmpagl_core.search.searcher import Searcher
from tests.conftest import FakeEncoder
from tests.imagery.making import ground, write


def lon_lat(west: float, north: float) -> dict[str, Any]:
    """A place for a scene of 128 pixels, a thousandth of a degree each."""
    from rasterio.transform import from_origin

    return {"crs": "EPSG:4326", "transform": from_origin(west, north, 0.001, 0.001), "photometric": "RGB"}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> GalleryIndex:
    """Two scenes of four tiles, one across the antimeridian, each with a day, and one without a place."""
    root = tmp_path_factory.mktemp("filters")
    planes = [ground(side=128, low=200, seed=seed).astype(np.uint16) for seed in range(3)]
    write(root / "scenes" / "copenhagen_20240531.tif", planes[0], **lon_lat(12.5, 55.7))
    write(root / "scenes" / "fiji_20230101.tif", planes[1], **lon_lat(179.936, -17.0))
    write(root / "scenes" / "nowhere.tif", planes[2], photometric="RGB")
    return build_index(FakeEncoder(), folder_source(root / "scenes", tiling=Tiling(64)), root / "index", Silent()).index


def found(index: GalleryIndex, **filters: Any) -> set[str]:
    """Scenes of the images that a search finds, having been told to find all."""
    where = Filters(**filters).mask(index)
    hits = Searcher(index, FakeEncoder, Silent()).search([TextQuery("pier")], 99, Narrowed(where))[0]
    assert len(hits) == (len(index) if where is None else where.sum())
    return {hit.image.path.stem.split("_")[0] for hit in hits}


def test_boxes_are_found_also_across_the_antimeridian(index: GalleryIndex) -> None:
    assert found(index) == {"copenhagen", "fiji", "nowhere"}
    assert found(index, bbox=(12.0, 55.0, 13.0, 56.0)) == {"copenhagen"}
    assert found(index, bbox=(170.0, -20.0, -170.0, -10.0)) == {"fiji"}
    assert found(index, bbox=(-180.0, -20.0, -170.0, -10.0)) == {"fiji"}
    assert found(index, bbox=(-180.0, -90.0, 180.0, 90.0)) == {"copenhagen", "fiji"}
    assert found(index, bbox=(0.0, 0.0, 1.0, 1.0)) == set()


def test_a_filter_agrees_with_a_look_at_every_image(index: GalleryIndex) -> None:
    wanted = (12.5, 55.65, 12.53, 55.7)
    mask = Filters(bbox=wanted).mask(index)
    assert mask is not None
    for row, (west, south, east, north) in enumerate(boxes(corners(index)).tolist()):
        touching = west <= wanted[2] and east >= wanted[0] and south <= wanted[3] and north >= wanted[1]
        assert mask[row] == touching


def test_distances_are_those_of_a_sphere(index: GalleryIndex) -> None:
    assert found(index, near=(12.56, 55.64), within_m=10_000.0) == {"copenhagen"}
    assert found(index, near=(-179.99, -17.06), within_m=10_000.0) == {"fiji"}
    corner = np.array([[[10.0, 50.0]] * 4])
    for lon, lat in ((10.0, 51.0), (11.0, 50.0), (-170.0, -50.0)):
        cosine = math.sin(math.radians(50)) * math.sin(math.radians(lat)) + math.cos(math.radians(50)) * math.cos(
            math.radians(lat)
        ) * math.cos(math.radians(lon - 10))
        expected = 6_371_008.8 * math.acos(max(-1.0, min(1.0, cosine)))
        assert distance_m(corner, lon, lat)[0] == pytest.approx(expected, rel=1e-6)


def test_polygons_days_and_names(index: GalleryIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    area = {"type": "Polygon", "coordinates": [[[12, 55], [13, 55], [13, 56], [12, 56], [12, 55]]]}
    path = tmp_path / "area.geojson"
    for content in (area, {"type": "Feature", "geometry": area, "properties": {}}):
        path.write_text(json.dumps(content))
        assert found(index, inside=path) == {"copenhagen"}
    assert found(index, since="2024") == {"copenhagen"}
    assert found(index, until="2023-01") == {"fiji"}
    assert found(index, since="2023-01-01", until="2024-05-31") == {"copenhagen", "fiji"}
    assert found(index, scene="fiji*") == {"fiji"}
    assert found(index, scene="nowhere") == {"nowhere"}
    assert found(index, path="scenes/c*") == {"copenhagen"}
    for broken in ("{}", "[]", '{"type": "Point", "coordinates": [1, 2]}', '{"type": "Feature", "geometry": 3}'):
        path.write_text(broken)
        with pytest.raises(DataError, match=r"area\.geojson"):
            found(index, inside=path)
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(UsageError, match=r"pip install 'cmpagl\[geo\]'"):
        found(index, inside=path)


@pytest.mark.parametrize("text", ["", "1,2,3", "a,b,c,d", "0,5,1,4", "0,0,200,1", "nan,0,1,1"])
def test_a_wrong_box_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--bbox"):
        parse_box(text)


def test_points_and_distances_are_read() -> None:
    assert parse_point("12.5,-55") == (12.5, -55.0)
    assert (parse_distance("500m"), parse_distance("2.5 km")) == (500.0, 2500.0)
    for wrong in ("5", "5 miles", "-5km"):
        with pytest.raises(UsageError, match="is not a distance"):
            parse_distance(wrong)
    with pytest.raises(UsageError, match="is not on the Earth"):
        parse_point("200,0")


def test_touching_tiles_become_one_region_and_geojson_is_cut_at_the_antimeridian(index: GalleryIndex) -> None:
    hits = Searcher(index, FakeEncoder, Silent()).search([TextQuery("pier")], 99)[0]
    regions = merge_regions(hits)
    assert len(regions) == 3  # the four tiles of each scene
    assert sum(len(region.image_ids) for region in regions) == len(hits)
    assert [region.hit.rank for region in regions] == [1, 2, 3]
    assert regions[0].hit.score == hits[0].score
    window = regions[0].hit.image.window
    assert window is not None
    assert (window.width, window.height) == (128, 128)
    document = json.loads(geojson([region.hit for region in regions]))
    shapes = {feature["id"].split("_")[0]: feature["geometry"] for feature in document["features"]}
    fiji = shapes["fiji"]
    assert fiji["type"] == "MultiPolygon"
    lons = [point[0] for polygon in fiji["coordinates"] for point in polygon[0]]
    assert (min(lons), max(lons)) == (-180.0, 180.0)
    copenhagen = shapes["copenhagen"]["coordinates"][0]
    area = sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairwise(copenhagen))
    assert area > 0  # anticlockwise
    assert next(geometry for name, geometry in shapes.items() if name.startswith("nowhere")) is None


def test_distinct_hits_hide_overlapping_tiles_and_still_number_k(index: GalleryIndex, tmp_path: Path) -> None:
    source = folder_source(Path(index.info.source), tiling=Tiling(64, overlap=0.5))
    dense = build_index(FakeEncoder(), source, tmp_path / "dense", Silent()).index
    hits = Searcher(dense, FakeEncoder, Silent()).search([TextQuery("pier")], 6, Narrowed(distinct=True))[0]
    assert 0 < len(hits) <= 6
    for place, one in enumerate(hits):
        for other in hits[:place]:
            a, b = one.image.window, other.image.window
            if one.image.path == other.image.path and a is not None and b is not None:
                assert abs(a.left - b.left) >= 64 or abs(a.top - b.top) >= 64
