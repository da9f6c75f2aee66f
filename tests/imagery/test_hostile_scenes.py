"""Scenes that lie, in their directories and beside them; each is read or refused in a sentence, in no time."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio

from cmpagl_core.errors import DataError
from cmpagl_core.imagery.gdal import gdal, open_dataset
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import open_image
from cmpagl_core.imagery.reader import ReadImage, read_image
from tests.imagery.making import ground, write
from tests.imagery.test_reaching_out import VRT, Door, address, tif, vrt

__all__ = ["address"]

SHORT, LONG = 3, 4
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, SAMPLES, ROWS, COUNTS = (
    256, 257, 258, 259, 262, 273, 277, 278, 279,
)  # fmt: skip
HONEST = {WIDTH: 8, HEIGHT: 8, BITS: 8, COMPRESSION: 1, PHOTOMETRIC: 1, OFFSETS: 8, SAMPLES: 1, ROWS: 8, COUNTS: 64}


def lying(path: Path, changes: dict[int, int], next_directory: int = 0, repeated: int = 1) -> Path:
    """A TIFF of 8 x 8 pixels with a directory behind them, of which some entries lie."""
    entries = [(tag, value) for tag, value in sorted((HONEST | changes).items()) for _ in range(repeated)]
    content = struct.pack("<2sHI", b"II", 42, 72) + bytes(range(64)) + struct.pack("<H", len(entries))
    content += b"".join(struct.pack("<HHII", tag, LONG, 1, value) for tag, value in entries)
    path.write_bytes(content + struct.pack("<I", next_directory))
    return path


def test_the_honest_one_is_read(tmp_path: Path) -> None:
    assert open_image(lying(tmp_path / "a.tif", {})).size == (8, 8)


@pytest.mark.parametrize(
    ("changes", "next_directory", "repeated"),
    [
        ({OFFSETS: 0xFFFFFFF0}, 0, 1),  # strips behind the end
        ({COUNTS: 0xFFFFFFFF}, 0, 1),
        ({WIDTH: 0xFFFFFFFF, HEIGHT: 0xFFFFFFFF}, 0, 1),
        ({WIDTH: 0}, 0, 1),
        ({HEIGHT: 900_000, ROWS: 1}, 0, 1),  # strips that are not listed
        ({SAMPLES: 65_535}, 0, 1),
        ({BITS: 64}, 0, 1),
        ({COMPRESSION: 34_712}, 0, 1),  # JPEG 2000 that is none
        ({COMPRESSION: 7}, 0, 1),
        ({}, 72, 1),  # a directory that follows itself
        ({}, 0xFFFFFFFF, 1),
        ({}, 0, 500),
    ],
)
def test_a_directory_that_lies_is_refused_in_a_sentence(
    changes: dict[int, int], next_directory: int, repeated: int, tmp_path: Path
) -> None:
    started_at = time.process_time()
    seen = read_image(ImageRef("a", lying(tmp_path / "a.tif", changes, next_directory, repeated)), at_least_px=8)
    assert isinstance(seen, ReadImage) or "\n" not in seen.why
    assert time.process_time() - started_at < 5


def test_a_million_pixels_squared_in_a_small_file_are_refused(tmp_path: Path) -> None:
    side, options = 1_000_000, {"tiled": True, "blockxsize": 16_384, "blockysize": 16_384, "sparse_ok": True}
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=1, dtype="uint8", bigtiff="YES", **options
    ):
        pass
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match=r"claims 1,000,000 x 1,000,000 pixels"):
        open_image(path, at_least_px=64)


@pytest.mark.parametrize("end", [".msk", ".ovr"])
@pytest.mark.parametrize("source", ["/vsicurl/{0}", "{1}"])
def test_masks_and_overviews_beside_a_scene_lead_nowhere(end: str, source: str, tmp_path: Path, address: str) -> None:
    (tmp_path / "mine").mkdir()
    secret = write(tmp_path / "secret.tif", np.zeros((1, 64, 64), np.uint16))
    path = tif(tmp_path / "mine" / "a.tif")
    beside = path.with_name(f"a.tif{end}")
    beside.write_text(VRT.format(source=source.format(address, secret), relative=0))
    for one in (path, vrt(tmp_path / "mine" / "a.vrt", "a.tif")):
        seen = read_image(ImageRef("a", one), at_least_px=8)
        assert not isinstance(seen, ReadImage)
        assert f"a.tif{end} holds overviews or a mask, and is no TIFF" in seen.why
    assert Door.knocks == 0


@pytest.mark.parametrize("name", ["a.aux", "a.tif.aux"])
def test_overviews_that_erdas_notes_name_are_not_read(name: str, tmp_path: Path) -> None:
    scene, notes = tif(tmp_path / "a.tif"), tmp_path / name
    before = np.asarray(open_image(scene, at_least_px=8))
    options = {"AUX": "YES", "DEPENDENT_FILE": "a.tif"}
    with rasterio.open(notes, "w", driver="HFA", width=64, height=64, count=1, dtype="uint16", **options):
        pass
    with rasterio.open(scene) as careless:
        careless.overviews(1)
        assert str(notes) in careless.files
    with gdal(), open_dataset(scene) as dataset:
        assert dataset.overviews(1) == []
        assert dataset.files == [str(scene)]
    np.testing.assert_array_equal(np.asarray(open_image(scene, at_least_px=8)), before)
    seen = read_image(ImageRef("a", vrt(tmp_path / "a.vrt", "a.tif")), at_least_px=8)
    assert not isinstance(seen, ReadImage)
    assert f"{name} may name any file as overviews" in seen.why


@pytest.mark.parametrize(
    "lines", ["inf\n0\n0\ninf\n0\n0\n", "nan\n" * 6, "1e308\n0\n0\n-1e308\n1e308\n1e308\n", "x\n" * 9, ""]
)
def test_a_world_file_that_makes_no_sense_costs_no_pixels(lines: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ground(bands=3, side=64).astype(np.uint8))
    expected = np.asarray(open_image(path))
    (tmp_path / "a.tfw").write_text(lines)
    seen = read_image(ImageRef("a", path))
    assert isinstance(seen, ReadImage)
    assert np.array_equal(np.asarray(seen.pixels), expected)


def test_entities_of_xml_are_not_expanded(tmp_path: Path) -> None:
    bomb = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "x" * 100}">' for n in range(12))
    path = tif(tmp_path / "a.tif")
    notes = (
        f"<!DOCTYPE a [{bomb}]><PAMDataset><SRS>&e11;</SRS><Metadata><MDI key='a'>&e11;</MDI></Metadata></PAMDataset>"
    )
    path.with_name("a.tif.aux.xml").write_text(notes)
    started_at = time.process_time()
    seen = read_image(ImageRef("a", path))
    assert isinstance(seen, ReadImage) or seen.why
    (tmp_path / "b.vrt").write_text(f"<!DOCTYPE a [{bomb}]>" + VRT.format(source="&e11;", relative=1))
    with pytest.raises(DataError, match=r"b\.vrt"):
        open_image(tmp_path / "b.vrt")
    assert time.process_time() - started_at < 5
