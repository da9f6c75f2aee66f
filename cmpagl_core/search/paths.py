"""The images that a user names by paths: folders, files, patterns, and static STAC catalogues (extra `geo`)."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmpagl_core.errors import CmpaglError, DataError, UsageError
from cmpagl_core.files import leads_to_file, read_json
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import IMAGE_SUFFIXES
from cmpagl_core.imagery.listing import list_images
from cmpagl_core.imagery.reading import DEFAULT, Reading
from cmpagl_core.imagery.stamps import Broken
from cmpagl_core.imagery.tiles import WHOLE, Tiling
from cmpagl_core.search.gallery_source import Entry, GallerySource, by_id, folder_source
from cmpagl_core.search.stac import NOT_IMAGERY

_CATALOGUES = ("Catalog", "Collection")


@dataclass
class _Found:
    """Image files, each once, and what was left out."""

    images: dict[Path, None] = field(default_factory=dict)
    left_out: list[Broken] = field(default_factory=list)


def path_source(paths: Sequence[Path], reading: Reading = DEFAULT, tiling: Tiling = WHOLE) -> GallerySource:
    """The images of some paths. One folder is a gallery of its own kind, which follows what comes and goes in it.

    An image's id is its path below the folder that all have in common. Raises DataError for a path that leads to no
    image, UsageError for a catalogue where pystac is not installed.
    """
    if len(paths) == 1 and paths[0].is_dir():
        return folder_source(paths[0], reading, tiling)
    found = _Found()
    for path in paths:
        _take(path, found)
    images = list(found.images)
    root = Path(os.path.commonpath([path.parent for path in images]))
    entries = [Entry(ImageRef(path.relative_to(root).as_posix(), path, reading=reading)) for path in images]
    source = os.pathsep.join(sorted(str(_absolute(path)) for path in paths))
    return GallerySource("files", source, "", "", by_id(entries), tuple(found.left_out), reading, tiling)


def _take(path: Path, found: _Found) -> None:
    """Add what one path leads to. Raises DataError when that is nothing."""
    images: Sequence[Path] = ()
    left_out = len(found.left_out)
    if path.is_dir():
        listing = list_images(_absolute(path))
        images = listing.images
        found.left_out += [Broken(ImageRef(one.path, Path(one.path)), one.why) for one in listing.left_out]
    elif path.suffix.lower() == ".json":
        images = _of_catalogue(path, found.left_out)
    elif path.is_file():
        images = [_absolute(path)]
    elif glob.has_magic(str(path)):
        matching = (Path(name) for name in sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207 - absolute patterns
        images = [_absolute(one) for one in matching if one.is_file() and one.suffix.lower() in IMAGE_SUFFIXES]
    else:
        raise DataError(f"{path} does not exist", hint="pass folders, image files, patterns or a STAC catalogue")
    if not images and len(found.left_out) == left_out:
        raise DataError(f"{path} matches no image", hint=f"known are {', '.join(sorted(IMAGE_SUFFIXES))}")
    found.images |= dict.fromkeys(images)


def _of_catalogue(path: Path, left_out: list[Broken]) -> list[Path]:
    """The local image files of a catalogue; others are added to `left_out`."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("type") not in _CATALOGUES or "stac_version" not in content:
        raise DataError(f"{path} is not a STAC catalogue", hint="pass its catalog.json or collection.json")
    images = []
    for name, href in _assets(path):
        file = Path(href)
        if "://" in href:
            left_out.append(Broken(ImageRef(name, file), f"{href} is not a local file, and nothing is fetched"))
        elif not _is_below(href, path):
            left_out.append(Broken(ImageRef(name, file), f"{href} is not below the folder of {path}"))
        elif file.suffix.lower() in IMAGE_SUFFIXES and leads_to_file(file):
            images.append(_absolute(file))
        else:
            left_out.append(Broken(ImageRef(name, file), f"asset {name} of {path} is not an image file: {href}"))
    return images


def _assets(path: Path) -> Iterator[tuple[str, str]]:
    """Name and place of each asset that may be imagery, of all items below a catalogue."""
    try:
        import pystac
    except ImportError as error:
        raise UsageError("pystac is not installed", hint="pip install 'cmpagl[geo]'") from error

    class LocalOnly(pystac.stac_io.DefaultStacIO):  # type: ignore[misc]  # pystac has no types here
        """Reads files, never addresses."""

        def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
            if "://" in str(source):
                raise DataError(f"{source} is not a local file, and nothing is fetched", hint="copy the catalogue here")
            if not _is_below(str(source), path):
                raise DataError(f"{source} is not below the folder of {path}", hint="copy the catalogue whole")
            return str(super().read_text(source, *args, **kwargs))

    try:
        catalogue = pystac.Catalog.from_file(str(_absolute(path)), stac_io=LocalOnly())
        for item in catalogue.get_items(recursive=True):
            for key, asset in item.assets.items():
                kind = asset.media_type or ""
                if NOT_IMAGERY.isdisjoint(asset.roles or ()) and (kind.startswith("image/") or not kind):
                    yield f"{item.id}/{key}", asset.get_absolute_href() or asset.href
    except Exception as error:  # a catalogue is anybody's JSON, and breaks in as many ways
        for cause in (error, error.__cause__, error.__context__):
            if isinstance(cause, CmpaglError):
                raise cause from error
        raise DataError(f"{path} cannot be read as a STAC catalogue ({type(error).__name__}: {error})") from error


def _is_below(place: str, catalogue: Path) -> bool:
    """Whether a catalogue may lead there: whoever wrote it does not choose among all files of this machine."""
    try:
        return Path(place).resolve().is_relative_to(catalogue.resolve().parent)
    except (OSError, ValueError):
        return False


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
