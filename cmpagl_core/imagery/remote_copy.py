"""Copies of remote images: whole, or of a GeoTIFF only the part inside a box, whose blocks alone are read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, Self

import rasterio
from rasterio.enums import MaskFlags
from rasterio.io import DatasetReader, DatasetWriter
from rasterio.warp import transform_bounds
from rasterio.windows import Window as GdalWindow
from rasterio.windows import from_bounds
from rasterio.windows import transform as transform_of

from cmpagl_core.errors import DataError
from cmpagl_core.imagery.gdal import UNREADABLE, brief, check_header, gdal

TIFF_SUFFIXES = (".tif", ".tiff", ".gtiff")
MOST_BYTES = 8 << 30  # of a file that is copied whole, and of the pixels of a part

_BLOCK_PX = 256
_STRIP_BYTES = 64 << 20

_NAME = "remote.tif"  # what GDAL is told

Box = tuple[float, float, float, float]


class Outside(DataError):  # noqa: N818  # no fault: the file is simply not meant
    """A file has nothing inside the box."""


def copy_whole(url: str, stream: IO[bytes], size: int, target: Path) -> None:
    """size: in bytes, -1 if it is not known. Raises DataError for a file that is too large, or ends too early."""
    written = 0
    with target.open("wb") as out:
        while size <= MOST_BYTES and written <= MOST_BYTES and (content := stream.read(1 << 20)):
            written += out.write(content)
    if max(size, written) > MOST_BYTES:
        raise DataError(
            f"{url} has more than {MOST_BYTES:,} bytes", hint="name a smaller part with --bbox, or copy it here"
        )
    if size >= 0 and written != size:
        raise DataError(f"{url} ended after {written:,} of {size:,} bytes", hint="run the command again")


def copy_part(url: str, stream: IO[bytes], box: Box, target: Path) -> None:
    """Write the pixels of a GeoTIFF that lie in a box (west, south, east, north, in degrees), as they are.

    Raises Outside where there are none, DataError for a file that is broken, has no place or is too large.
    """
    try:
        with gdal(), rasterio.open(_NAME, driver="GTiff", sharing=False, opener=_Opener(stream)) as source:
            check_header(Path(url), source)
            window = _window(url, source, box)
            with rasterio.open(target, "w", **_profile(source, window)) as out:
                _write(source, window, out)
    except UNREADABLE as error:
        if (failure := getattr(stream, "failure", None)) is not None:
            raise failure from error
        raise DataError(f"{url} cannot be read as a GeoTIFF ({brief(str(error))})") from error


class _Opener:
    """Gives GDAL the one stream that there is, and nothing that it looks for beside it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def __call__(self, name: str, mode: str = "rb") -> IO[bytes]:
        if Path(name).name != _NAME or mode not in ("r", "rb"):
            raise FileNotFoundError(name)
        self._stream.seek(0)
        return _Kept(self._stream)  # type: ignore[return-value]  # as much of one as is needed


class _Kept:
    """A stream that GDAL may close as often as it opens it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.read, self.seek, self.tell = stream.read, stream.seek, stream.tell

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Whoever opened it closes it."""


def _window(url: str, source: DatasetReader, box: Box) -> GdalWindow:
    if source.crs is None or source.transform.is_identity:
        raise DataError(f"{url} has no coordinates", hint="leave --bbox out")
    bounds = transform_bounds("EPSG:4326", source.crs, *box, densify_pts=21)
    if not all(map(math.isfinite, bounds)):
        raise Outside(f"{url} has nothing inside the box")
    wanted = from_bounds(*bounds, transform=source.transform)
    left, top = max(0, math.floor(wanted.col_off)), max(0, math.floor(wanted.row_off))
    right = min(source.width, math.ceil(wanted.col_off + wanted.width))
    bottom = min(source.height, math.ceil(wanted.row_off + wanted.height))
    if left >= right or top >= bottom:
        raise Outside(f"{url} has nothing inside the box")
    window = GdalWindow(left, top, right - left, bottom - top)
    if _bytes(source, window.width * window.height) > MOST_BYTES:
        raise DataError(f"the part of {url} inside the box is larger than is copied", hint="name a smaller --bbox")
    return window


def _profile(source: DatasetReader, window: GdalWindow) -> dict[str, object]:
    return {
        "driver": "GTiff", "dtype": source.dtypes[0], "count": source.count, "nodata": source.nodata,
        "width": window.width, "height": window.height, "crs": source.crs,
        "transform": transform_of(window, source.transform),
        "tiled": True, "blockxsize": _BLOCK_PX, "blockysize": _BLOCK_PX, "compress": "deflate", "bigtiff": "if_safer",
    }  # fmt: skip


def _write(source: DatasetReader, window: GdalWindow, out: DatasetWriter) -> None:
    out.colorinterp = source.colorinterp
    out.descriptions = source.descriptions
    out.update_tags(**{key: value for key, value in source.tags().items() if key.startswith("TIFFTAG_")})
    masked = MaskFlags.per_dataset in source.mask_flag_enums[0] and MaskFlags.alpha not in source.mask_flag_enums[0]
    for top, height in _strips(source, window):
        part = GdalWindow(window.col_off, top, window.width, height)
        place = GdalWindow(0, top - window.row_off, window.width, height)
        out.write(source.read(window=part), window=place)
        if masked:
            out.write_mask(source.dataset_mask(window=part), window=place)


def _strips(source: DatasetReader, window: GdalWindow) -> list[tuple[int, int]]:
    """Tops and heights, which end where rows of the file's blocks do, so that each block is read once."""
    block = max(1, source.block_shapes[0][0])
    rows = max(1, _STRIP_BYTES // max(1, _bytes(source, window.width)))
    step = max(block, rows // block * block)
    bottom, top, found = window.row_off + window.height, window.row_off, []
    while top < bottom:
        stop = min(bottom, (top // step + 1) * step)
        found.append((top, stop - top))
        top = stop
    return found


def _bytes(source: DatasetReader, pixels: int) -> int:
    digits = "".join(sign for sign in source.dtypes[0] if sign.isdigit())
    return int(pixels * source.count * (int(digits or 64) // 8))
