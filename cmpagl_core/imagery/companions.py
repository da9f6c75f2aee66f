"""The files that belong to an image file: a VRT's sources, ENVI headers, overviews, masks, GDAL's sidecar files."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from pathlib import Path

from cmpagl_core.errors import DataError
from cmpagl_core.imagery.vrt import sources_of

ENVI_SUFFIXES = frozenset({".img", ".dat", ".bsq", ".bil", ".bip"})
_WITH_NOTES = frozenset({".tif", ".tiff", ".jp2", ".j2k", ".vrt", ".ntf", ".nitf"}) | ENVI_SUFFIXES
_MAX_DEPTH = 3


def companions(path: Path) -> tuple[Path, ...]:
    """The files read together with a file, sorted; none for most images and for unreadable VRTs."""
    suffix = path.suffix.lower()
    if suffix not in _WITH_NOTES:
        return ()
    beside = [path.with_name(path.name + end) for end in (".aux.xml", ".ovr", ".msk")]
    if suffix in ENVI_SUFFIXES:
        beside += headers(path)
    found = {one for one in beside if one.is_file()}
    if suffix == ".vrt":
        with contextlib.suppress(OSError):
            state = path.stat()
            found.update(_known_sources(path, state.st_size, state.st_mtime_ns))
    return tuple(sorted(found))


def headers(path: Path) -> tuple[Path, Path]:
    """The two names that an ENVI header may have."""
    return path.with_suffix(".hdr"), path.with_name(path.name + ".hdr")


@lru_cache(maxsize=64)
def _known_sources(path: Path, size: int, mtime_ns: int) -> frozenset[Path]:
    """Those of a VRT as it is now, since it is asked for each of its tiles."""
    return frozenset(_all_sources(path, 0))


def _all_sources(path: Path, depth: int) -> set[Path]:
    try:
        sources = sources_of(path)
    except DataError:
        return set()
    found = set(sources)
    for source in sources:
        if source.suffix.lower() == ".vrt" and depth < _MAX_DEPTH:
            found |= _all_sources(source, depth + 1)
    return found
