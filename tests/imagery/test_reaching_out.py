"""No image leads anywhere: not to the network, not out of its folder, not into GDAL's own settings."""

from __future__ import annotations

import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio._env import get_gdal_config
from rasterio.enums import ColorInterp

from cmpagl_core.errors import DataError
from cmpagl_core.imagery.gdal import gdal, open_dataset
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import open_image
from cmpagl_core.imagery.reader import ReadImage, read_image
from tests.imagery.making import ground, write

VRT = """<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="UInt16" band="1">
<SimpleSource><SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand>
<SrcRect xOff="0" yOff="0" xSize="64" ySize="64"/><DstRect xOff="0" yOff="0" xSize="64" ySize="64"/></SimpleSource>
</VRTRasterBand></VRTDataset>"""


def vrt(path: Path, source: str | Path, relative: int = 1) -> Path:
    path.write_text(VRT.format(source=source, relative=relative))
    return path


def tif(path: Path) -> Path:
    return write(path, ground(bands=1, side=64).astype(np.uint16))


class Door(socketserver.BaseRequestHandler):
    """Counts who knocks."""

    knocks = 0

    def handle(self) -> None:
        Door.knocks += 1


@pytest.fixture
def address() -> Iterator[str]:
    """A server on this machine that nobody may reach."""
    Door.knocks = 0
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Door) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/a.tif"
        server.shutdown()
    assert Door.knocks == 0


def test_a_vrt_of_its_own_folder_is_read(tmp_path: Path) -> None:
    expected = np.asarray(open_image(tif(tmp_path / "below" / "a.tif")))
    assert np.array_equal(np.asarray(open_image(vrt(tmp_path / "a.vrt", "below/a.tif"))), expected)
    whole = vrt(tmp_path / "b.vrt", tmp_path / "below" / "a.tif", relative=0)
    assert np.array_equal(np.asarray(open_image(whole)), expected)
    assert np.array_equal(np.asarray(open_image(vrt(tmp_path / "c.vrt", "a.vrt"))), expected)


@pytest.mark.parametrize(
    "source",
    ["/vsicurl/{0}", "{0}", "/vsizip/vsicurl/{0}", "/vsimem/a.tif", "WMS:{0}", "GTIFF_DIR:1:a.tif", "", "..", "&lt;V"],
)  # fmt: skip
@pytest.mark.parametrize("relative", [0, 1])
def test_a_vrt_reaches_no_network_and_no_virtual_file(tmp_path: Path, address: str, source: str, relative: int) -> None:
    tif(tmp_path / "a.tif")
    path = vrt(tmp_path / "a.vrt", source.format(address), relative)
    with pytest.raises(DataError, match=r"a\.vrt reads '.*', which is not (in its own folder|there)"):
        open_image(path)


def test_a_vrt_reaches_no_other_folder(tmp_path: Path) -> None:
    secret = tif(tmp_path / "secret" / "a.tif")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "link.tif").symlink_to(secret)
    for source, relative in (("../secret/a.tif", 1), (secret, 0), ("link.tif", 1)):
        with pytest.raises(DataError, match=r"which is not in its own folder"):
            open_image(vrt(tmp_path / "mine" / "a.vrt", source, relative))


@pytest.mark.parametrize(
    "element",
    [
        '<VRTRasterBand subClass="VRTRawRasterBand"><SourceFilename>a</SourceFilename></VRTRasterBand>',
        '<VRTRasterBand subClass="VRTDerivedRasterBand"/>',
        "<VRTRasterBand><PixelFunctionCode>import os</PixelFunctionCode></VRTRasterBand>",
        "<VRTRasterBand><Overview><SourceFilename>a</SourceFilename></Overview></VRTRasterBand>",
        "<GDALWarpOptions><SourceDataset>/etc/passwd</SourceDataset></GDALWarpOptions>",
    ],
)
def test_what_a_vrt_may_do_else_is_not_read(tmp_path: Path, element: str) -> None:
    path = tmp_path / "a.vrt"
    path.write_text(f'<VRTDataset rasterXSize="9" rasterYSize="9">{element}</VRTDataset>')
    with pytest.raises(DataError, match=r"a\.vrt is a VRT with .*, which is not read; write it as a GeoTIFF"):
        open_image(path)


@pytest.mark.parametrize(
    "content", ["", "no xml", "<VRTDataset>", "<!DOCTYPE a []><VRTDataset/>", '<VRTDataset rasterXSize="9999999999"/>']
)
def test_a_broken_vrt_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.vrt").write_text(content)
    with pytest.raises(DataError, match=r"a\.vrt is"):
        open_image(tmp_path / "a.vrt")


def test_vrts_in_a_circle_end(tmp_path: Path) -> None:
    vrt(tmp_path / "a.vrt", "b.vrt")
    vrt(tmp_path / "b.vrt", "a.vrt")
    with pytest.raises(DataError, match=r"nested more than 3 deep"):
        open_image(tmp_path / "a.vrt")


def test_a_header_that_names_overviews_elsewhere_is_refused(tmp_path: Path, address: str) -> None:
    path = tif(tmp_path / "a.tif")
    with rasterio.open(path, "r+") as file:
        file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=f"/vsicurl/{address}")
    with pytest.raises(DataError, match=r"refers to another file for its overviews, which is not allowed"):
        open_image(path, at_least_px=8)
    beside = tif(tmp_path / "b.tif")
    note = f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/vsicurl/{address}</MDI></Metadata>'
    beside.with_name("b.tif.aux.xml").write_text(f"<PAMDataset>{note}</PAMDataset>")
    with pytest.raises(DataError, match=r"refers to another file for its overviews"):
        open_image(beside, at_least_px=8)
    with pytest.raises(DataError, match=r"refers to another file for its overviews"):
        open_image(vrt(tmp_path / "c.vrt", "b.tif"))


def test_the_list_of_formats_is_closed(tmp_path: Path) -> None:
    grid = tmp_path / "grid.tif"
    grid.write_text("ncols 2\nnrows 1\nxllcorner 0\nyllcorner 0\ncellsize 1\n1 2\n")
    others = [
        write(tmp_path / f"{driver}.tif", np.ones((1, 9, 9), np.uint8), driver=driver) for driver in ("HFA", "PNM")
    ]
    with gdal():
        open_dataset(tif(tmp_path / "a.tif")).close()
        for path in (grid, *others):
            with pytest.raises(DataError, match=r"is not an image of a known format"):
                open_dataset(path)


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for width, height, count, said in ((1_100_000, 9, 1, "claims 1,100,000 x 9 pixels"), (9, 9, 1_100, "1,100 bands")):
        options = {"tiled": True, "sparse_ok": True}
        with rasterio.open(
            path, "w", driver="GTiff", width=width, height=height, count=count, dtype="uint16", **options
        ):
            pass
        with pytest.raises(DataError, match=said):
            open_image(path)
    options = {"tiled": True, "blockxsize": 16_384, "blockysize": 16_384, "sparse_ok": True}
    with rasterio.open(path, "w", driver="GTiff", width=20_000, height=20_000, count=1, dtype="uint16", **options):
        pass
    with pytest.raises(DataError, match=r"blocks of 16,384 x 16,384 pixels, too large .*gdal_translate -of COG"):
        open_image(path, at_least_px=64)


def test_nothing_of_gdal_is_left_changed(tmp_path: Path) -> None:
    names = ("GDAL_CACHEMAX", "GDAL_NUM_THREADS", "GDAL_DISABLE_READDIR_ON_OPEN", "CPL_VSIL_CURL_ALLOWED_EXTENSIONS")
    before = [get_gdal_config(name) for name in names]
    colours = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    path = write(tmp_path / "a.tif", ground(side=64).astype(np.uint16), colours=colours)
    threads = [threading.Thread(target=read_image, args=(ImageRef("a", path),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(read_image(ImageRef("a", path)), ReadImage)
    assert [get_gdal_config(name) for name in names] == before
    assert sorted(tmp_path.iterdir()) == [path]  # no notes are written beside an image


def test_bytes_flipped_anywhere_in_a_scene_are_one_sentence(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    planes = ground(bands=4, side=64).astype(np.uint16)
    for driver, suffix in (("GTiff", ".tif"), ("JP2OpenJPEG", ".jp2"), ("NITF", ".ntf"), ("PNG", ".png")):
        path = write(tmp_path / f"a{suffix}", planes, driver=driver)
        content = path.read_bytes()
        for _ in range(25):
            spoiled = bytearray(content)
            for position in generator.integers(0, min(len(content), 2_000), 3):
                spoiled[position] = generator.integers(0, 256)
            path.write_bytes(spoiled)
            seen = read_image(ImageRef("a", path))
            assert isinstance(seen, ReadImage) or seen.why


def test_a_place_that_is_an_address_is_not_looked_up(tmp_path: Path, address: str) -> None:
    tif(tmp_path / "a.tif")
    path = vrt(tmp_path / "a.vrt", "a.tif")
    path.write_text(path.read_text().replace("<VRTRasterBand", f"<SRS>{address}</SRS><VRTRasterBand", 1))
    assert open_image(path).size == (64, 64)
    beside = tif(tmp_path / "b.tif")
    beside.with_name("b.tif.aux.xml").write_text(f"<PAMDataset><SRS>{address}</SRS></PAMDataset>")
    with suppress(DataError):  # GDAL itself refuses: no network here
        assert open_image(beside).size == (64, 64)


SPOILT = """
import sys
from pathlib import Path
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.reader import ReadImage, read_image
for path in sorted(Path().iterdir()):
    print(isinstance(read_image(ImageRef("a", path)), ReadImage))
"""


def test_gdal_writes_nothing_of_its_own(tmp_path: Path) -> None:
    planes = np.random.default_rng(0).integers(0, 3_000, (3, 128, 128), dtype=np.uint16)
    for driver, suffix in (("GTiff", ".tif"), ("JP2OpenJPEG", ".jp2"), ("NITF", ".ntf"), ("PNG", ".png")):
        options = {"compress": "lzw"} if driver == "GTiff" else {}
        path = write(tmp_path / f"a{suffix}", planes, driver=driver, **options)
        content = bytearray(path.read_bytes())
        content[1_000:20_000:97] = bytes(255 - value for value in content[1_000:20_000:97])
        path.write_bytes(bytes(content))
    (tmp_path / "b.tif").write_bytes(b"II*\0 no image")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", SPOILT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "False" in done.stdout
    assert done.stderr == ""
