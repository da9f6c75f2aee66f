"""An exported index opens in geopandas and DuckDB beside rasterio, with footprints where images have coordinates."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.warp import transform_bounds

from cmpagl_core.errors import UsageError
from cmpagl_core.imagery.tiles import Tiling
from cmpagl_core.progress import Silent
from cmpagl_core.search.gallery_source import folder_source
from cmpagl_core.search.geo_export import export_index
from cmpagl_core.search.index import GalleryIndex
from cmpagl_core.search.indexing import build_index
from tests.conftest import Cmpagl, FakeEncoder
from tests.imagery.making import UTM, ground, write


@pytest.fixture
def index(tmp_path: Path) -> GalleryIndex:
    """Four tiles of a scene with coordinates, and an image without."""
    folder = tmp_path / "scenes"
    write(folder / "a_20200102.tif", ground(side=128, low=200).astype(np.uint16), photometric="RGB", **UTM)
    Image.fromarray(ground(side=64, high=255).astype(np.uint8).transpose(1, 2, 0)).save(folder / "b.png")
    source = folder_source(folder, tiling=Tiling(64))
    return build_index(FakeEncoder(), source, tmp_path / "indexes" / "scenes", Silent()).index


@pytest.mark.parametrize("suffix", [".parquet", ".gpkg"])
def test_an_export_opens_elsewhere_with_footprints(index: GalleryIndex, tmp_path: Path, suffix: str) -> None:
    import geopandas

    out = tmp_path / f"images{suffix}"
    assert export_index(index, out, with_features=suffix == ".parquet") == 4
    table = geopandas.read_parquet(out) if suffix == ".parquet" else geopandas.read_file(out, engine="pyogrio")
    assert (len(table), table.crs.to_epsg()) == (5, 4326)
    assert table["geometry"].notna().sum() == 4
    scene = table[table["path"].str.endswith("a_20200102.tif")]
    assert set(scene["window_width"]) == {64}
    assert {str(date)[:10] for date in scene["date"]} == {"2020-01-02"}
    with rasterio.open(tmp_path / "scenes" / "a_20200102.tif") as file:  # both GDALs in one process
        expected = transform_bounds(file.crs, "EPSG:4326", *file.bounds, densify_pts=2)
    np.testing.assert_allclose(scene.total_bounds, expected, atol=1e-6)
    if suffix == ".parquet":
        np.testing.assert_array_equal(np.stack(list(table["feature"])), index.image_features)


def test_duckdb_reads_footprints_with_its_spatial_extension(index: GalleryIndex, tmp_path: Path) -> None:
    import duckdb
    from duckdb_extensions import import_extension

    export_index(index, tmp_path / "a.parquet")
    with duckdb.connect(config={"extension_directory": str(tmp_path)}) as database:
        import_extension("spatial", con=database)
        database.load_extension("spatial")
        found = database.sql(
            f"select window_left, ST_XMin(geometry), ST_YMax(geometry) from read_parquet('{tmp_path / 'a.parquet'}') "
            "where geometry is not null order by ST_XMin(geometry), ST_YMax(geometry)"
        ).fetchall()
    with rasterio.open(tmp_path / "scenes" / "a_20200102.tif") as file:  # three GDALs in one process
        west, _, _, north = transform_bounds(file.crs, "EPSG:4326", *file.bounds, densify_pts=2)
    assert len(found) == 4
    assert min(row[1] for row in found) == pytest.approx(west, abs=1e-6)
    assert max(row[2] for row in found) == pytest.approx(north, abs=1e-6)


def test_what_cannot_be_exported_is_refused(
    index: GalleryIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"has neither the suffix \.parquet nor \.gpkg"):
        export_index(index, tmp_path / "a.shp")
    with pytest.raises(UsageError, match="cannot store features"):
        export_index(index, tmp_path / "a.gpkg", with_features=True)
    monkeypatch.setitem(sys.modules, "geopandas", None)
    with pytest.raises(UsageError, match=r"pip install 'cmpagl\[geo\]'"):
        export_index(index, tmp_path / "a.gpkg")


def test_the_command_says_how_many_have_a_footprint(cmpagl: Cmpagl, index: GalleryIndex, tmp_path: Path) -> None:
    result = cmpagl("indexes", "export", "scenes", "--out", tmp_path / "a.gpkg", "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)[0]["with_footprint"] == 4
