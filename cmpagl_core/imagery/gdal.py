"""Safe access to GDAL: a fixed list of formats, no network, no virtual files, bounded cache and threads.

A file's header is untrusted: sizes are checked here before they are used.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rasterio
from rasterio._env import get_gdal_config, set_gdal_config
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from cmpagl_core.errors import DataError
from cmpagl_core.imagery.vrt import sources_of

DRIVERS = ("GTiff", "COG", "JP2OpenJPEG", "VRT", "PNG", "JPEG", "WEBP", "ENVI", "NITF")
FORMATS = ("GeoTIFF", "JPEG 2000", "VRT", "PNG", "JPEG", "WebP", "ENVI", "NITF")
CACHE_BYTES = 128 << 20
UNREADABLE = (
    *(RasterioError, CPLE_BaseError),
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, UserWarning),
)
"""What rasterio raises on broken files; warnings too, where a caller has turned them into errors."""

_MAX_SIDE, _MAX_PIXELS, _MAX_BANDS = 1_000_000, 100_000_000_000, 1_000
_MAX_BLOCK_BYTES = 256 << 20
_BESIDE = (".ovr", ".msk", ".OVR", ".MSK", ".msk.ovr", ".ovr.ovr", ".ovr.msk")
_ERDAS_HEAD = b"EHFA_HEADER_TAG"
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_VRT_DEPTH, _MAX_VRT_SOURCES = 3, 10_000
_OPTIONS = {
    "GDAL_NUM_THREADS": 1,  # images are decoded in threads of ours already
    "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",  # a folder of a million images is not listed for each
    "GDAL_PAM_ENABLED": "YES",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",  # checked paths lead to no address; should one, it is refused there
    "CPL_CURL_ENABLE_VSIMEM": "NO",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_VRT_ENABLE_RAWRASTERBAND": "NO",
    "GDAL_TIFF_INTERNAL_MASK_TO_8BIT": True,
    "GDAL_MAX_DATASET_POOL_SIZE": 64,  # sources of a VRT that are open at once
}


class _Cache:
    """GDAL's block cache is the process's: bounded while anyone reads, as it was before when the last one is done."""

    def __init__(self) -> None:
        self._lock, self._readers, self._before = threading.Lock(), 0, 0

    @contextmanager
    def bounded(self) -> Iterator[None]:
        with self._lock:
            if not self._readers:
                self._before = get_gdal_config("GDAL_CACHEMAX")
                set_gdal_config("GDAL_CACHEMAX", min(self._before, CACHE_BYTES))
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                if not self._readers:
                    set_gdal_config("GDAL_CACHEMAX", self._before)


_CACHE = _Cache()


@contextmanager
def gdal() -> Iterator[None]:
    """Our options around every call into GDAL; what was set before is set again after it."""
    with _CACHE.bounded(), rasterio.Env(**_OPTIONS):
        yield


def open_dataset(path: Path) -> DatasetReader:
    """Open a file of one of our formats, inside `gdal()`. Raises DataError for any other, or one that reaches out."""
    return _open(Path(os.path.abspath(path)), depth=0)  # noqa: PTH100 - resolve() would follow links


def open_page(path: Path, number: int) -> DatasetReader:
    """One page of a TIFF, from 1, inside `gdal()`. Raises DataError."""
    return _opened(path, f"GTIFF_DIR:{number}:{os.path.abspath(path)}")  # noqa: PTH100 - as above


def _open(path: Path, depth: int) -> DatasetReader:
    if str(path).startswith("/vsi"):
        raise DataError(f"{path} has a name that GDAL would treat as a virtual file", hint="rename it or move it")
    if path.suffix.lower() == ".vrt":
        _check_sources(path, depth)
    return _opened(path, str(path))


def _opened(path: Path, name: str) -> DatasetReader:
    _check_beside(path)
    # With such notes GDAL would take overviews from wherever they say.
    options = {"OVERVIEW_LEVEL": "NONE"} if _erdas_notes(path) else {}
    try:
        dataset = DatasetReader(name, driver=list(DRIVERS), **options)  # rasterio.open takes one driver alone
    except UNREADABLE as error:
        if not path.exists():
            raise DataError(f"image {path} does not exist") from error
        said = f"{error}".replace(str(path), path.name)
        why = "is not an image of a known format" if "not recognized" in said else f"is a broken image ({brief(said)})"
        raise DataError(f"{path} {why}", hint=f"known are {', '.join((*FORMATS, 'BMP', 'GIF'))}") from error
    try:
        check_header(path, dataset)
    except UNREADABLE as error:
        dataset.close()
        raise DataError(f"{path} is a broken image ({brief(str(error))})") from error
    except BaseException:
        dataset.close()
        raise
    return dataset


def _check_beside(path: Path) -> None:
    """GDAL opens overviews and masks beside a file with any of its drivers, and a VRT among them leads anywhere."""
    for end in _BESIDE:
        beside = path.with_name(path.name + end)
        try:
            with beside.open("rb") as stream:
                head = stream.read(4)
        except OSError:
            continue  # there is none
        if head not in _TIFF_HEADS:
            raise DataError(
                f"{beside} holds overviews or a mask, and is no TIFF, so {path} is not read", hint="move it away"
            )


def _erdas_notes(path: Path) -> list[Path]:
    """The .aux files of Erdas Imagine beside a file, which may name any other file as its overviews."""
    names = [path.with_suffix(end) for end in (".aux", ".AUX")] + [Path(f"{path}{end}") for end in (".aux", ".AUX")]
    found = []
    for name in names:
        try:
            with name.open("rb") as stream:
                if stream.read(len(_ERDAS_HEAD)) == _ERDAS_HEAD:
                    found.append(name)
        except OSError:
            continue  # there is none
    return found


def brief(text: str) -> str:
    """A decoder's message on one line."""
    return " ".join(text.split())[:200]


def check_header(path: Path, dataset: DatasetReader) -> None:
    """Refuse what a header should not say. Raises DataError for unsafe values."""
    width, height, count = dataset.width, dataset.height, dataset.count
    if dataset.driver not in DRIVERS:
        raise DataError(
            f"{path} has the format {dataset.driver}, which is not supported", hint=f"known are {', '.join(FORMATS)}"
        )
    if "OVERVIEW_FILE" in dataset.tags(ns="OVERVIEWS"):
        raise DataError(
            f"{path} refers to another file for its overviews, which is not allowed",
            hint="remove OVERVIEW_FILE from its metadata",
        )
    if max(width, height) > _MAX_SIDE or width * height > _MAX_PIXELS or count > _MAX_BANDS:
        raise DataError(
            f"{path} claims {width:,} x {height:,} pixels in {count:,} bands, more than can be read safely",
            hint="crop it first",
        )
    for (rows, columns), dtype in zip(dataset.block_shapes, dataset.dtypes, strict=True):
        interleaved = count if dataset.interleaving is not None and dataset.interleaving.value == "PIXEL" else 1
        if rows * columns * _item_bytes(dtype) * interleaved > _MAX_BLOCK_BYTES and dataset.driver != "VRT":
            raise DataError(
                f"{path} is stored in blocks of {columns:,} x {rows:,} pixels, too large to read in parts",
                hint="convert it to a tiled file first (gdal_translate -of COG)",
            )


def _item_bytes(dtype: str) -> int:
    digits = "".join(sign for sign in dtype if sign.isdigit())
    return int(digits or 64) // 8


def _check_sources(path: Path, depth: int) -> None:
    if depth >= _MAX_VRT_DEPTH:
        raise DataError(f"{path}: VRTs are nested more than {_MAX_VRT_DEPTH} deep", hint="write it as one GeoTIFF")
    found = sources_of(path)
    if len(found) > _MAX_VRT_SOURCES:
        raise DataError(
            f"{path} refers to {len(found):,} files, more than can be read safely", hint="write it as one GeoTIFF"
        )
    for source in found:
        notes = _erdas_notes(source)
        if notes:
            raise DataError(f"{notes[0]} may name any file as overviews, so {path} is not read", hint="move it away")
        _open(source, depth + 1).close()
