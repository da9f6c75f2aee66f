"""Images that a user names by address, copied into a folder of the workspace, from where they are indexed.

An address is an image, a STAC API or catalogue, or a place in an object store. With a box, only the part of each
GeoTIFF inside it is read, by range. What is there and has not changed is not fetched again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.files import atomic_path, canonical_json, read_json, sha256_text, write_json
from cmpagl_core.imagery.geo import date_of_name
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import IMAGE_SUFFIXES
from cmpagl_core.imagery.remote_copy import TIFF_SUFFIXES, Outside, copy_part, copy_whole
from cmpagl_core.imagery.remote_file import check_url, filesystem, opened_url, reading, streamed_url
from cmpagl_core.imagery.stamps import Broken
from cmpagl_core.locks import hold
from cmpagl_core.progress import Progress
from cmpagl_core.search.stac import Asset, ItemQuery, catalogue_assets

REMOTE_FOLDER = "remote"  # in a workspace
FETCHED_SUFFIXES = IMAGE_SUFFIXES - {".vrt"}  # which names other files

_AT_ONCE = 8
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Fetched:
    """Where images are now, how many were fetched or had nothing inside the box, and those that could not be."""

    folder: Path
    fetched: int
    outside: int
    left_out: tuple[Broken, ...]


def fetch_images(urls: Sequence[str], query: ItemQuery, folder: Path, progress: Progress) -> Fetched:
    """Make `folder` hold the images of some addresses, and nothing else.

    Raises DataError where the addresses lead to no image, or none could be fetched or has anything inside the box;
    UsageError for a package that is missing; BusyError when another process fetches into it.
    """
    assets = {asset.url: asset for url in urls for asset in _listed(url, query)}
    if not assets:
        raise DataError(f"{', '.join(urls)[:500]} leads to no image", hint="check the box, the days and the names")
    folder.mkdir(parents=True, exist_ok=True)
    left_out: list[Broken] = []
    counts = {"fetched": 0, "kept": 0, "outside": 0}
    bar = progress.task("fetch images", len(assets), "img")
    with hold(folder), ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fetch") as pool, bar as advance:
        try:
            work = [(asset, pool.submit(_fetch, asset, query, folder)) for asset in assets.values()]
            for asset, future in work:
                try:
                    counts[future.result()] += 1
                except DataError as error:
                    left_out.append(Broken(ImageRef(asset.name, folder / _file_name(asset)), str(error)))
                advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        _remove_others(folder, {_file_name(asset) for asset in assets.values()})
    if not counts["fetched"] + counts["kept"]:
        with suppress(OSError):  # what was there before is gone
            folder.rmdir()
        raise _nothing(left_out, len(assets))
    if counts["outside"]:
        progress.say(f"{counts['outside']:,} images have nothing inside the box")
    return Fetched(folder, counts["fetched"], counts["outside"], tuple(left_out))


def _nothing(left_out: Sequence[Broken], count: int) -> DataError:
    """Why no image was fetched."""
    if not left_out:
        return DataError(f"{count:,} images have nothing inside the box", hint="check --bbox: west,south,east,north")
    others = f", and {len(left_out) - 1:,} others neither" if len(left_out) > 1 else ""
    return DataError(f"{left_out[0].why}{others}", hint="check the address, and that the network reaches it")


def _listed(url: str, query: ItemQuery) -> Iterator[Asset]:
    parts = urlsplit(check_url(url))
    if _suffix(url) in FETCHED_SUFFIXES and "*" not in url:
        yield Asset(PurePosixPath(unquote(parts.path)).stem, url)
    elif parts.scheme in ("http", "https"):
        yield from catalogue_assets(url, query)
    else:
        yield from _in_store(url, query.most)


def _in_store(url: str, most: int) -> Iterator[Asset]:
    """The images below a prefix of an object store, or by a pattern."""
    scheme = url.partition("://")[0]
    with reading(url):
        store = filesystem(url)
        names = sorted(store.glob(url) if "*" in url else store.find(url))
    found = [name for name in names if _suffix(name) in FETCHED_SUFFIXES]
    if len(found) > most:
        raise DataError(f"{url} has {len(found):,} images", hint=f"name a part of it, or pass --most (now {most:,})")
    root = PurePosixPath(url.partition("://")[2].partition("*")[0])
    for name in found:
        below = PurePosixPath(name)
        short = below.relative_to(root) if below.is_relative_to(root) else PurePosixPath(below.name)
        yield Asset(str(short.with_suffix("")).replace("/", "-"), f"{scheme}://{name}")


def _fetch(asset: Asset, query: ItemQuery, folder: Path) -> str:
    """`fetched`, `kept` or `outside`. Raises DataError."""
    target = folder / _file_name(asset)
    record = folder / f".{target.name}.json"  # hidden, so that no listing takes it for an image
    if _suffix(asset.url) not in FETCHED_SUFFIXES:
        raise DataError(f"{asset.url} is not an image file", hint=f"known are {', '.join(sorted(FETCHED_SUFFIXES))}")
    part = query.bbox is not None and _suffix(asset.url) in TIFF_SUFFIXES
    with (opened_url if part else streamed_url)(asset.url) as (stream, size, version):
        about = {"url": asset.url, "size": size, "version": version, "bbox": list(query.bbox or ()) if part else []}
        if version and target.is_file() and _said(record) == canonical_json(about):
            return "kept"
        record.unlink(missing_ok=True)
        try:
            with atomic_path(target) as partial, reading(asset.url):
                if part and query.bbox is not None:
                    copy_part(asset.url, stream, query.bbox, partial)
                else:
                    copy_whole(asset.url, stream, size, partial)
        except Outside:
            target.unlink(missing_ok=True)
            return "outside"
    write_json(record, about)
    return "fetched"


def _said(record: Path) -> str:
    try:
        return canonical_json(read_json(record))
    except CmpaglError:
        return ""


def _remove_others(folder: Path, names: set[str]) -> None:
    for path in folder.iterdir():
        name = path.name.removeprefix(".").removesuffix(".json") if path.name.startswith(".") else path.name
        if path.is_file() and name not in names and not path.name.endswith((".lock", ".lock.json")):
            path.unlink(missing_ok=True)


def _file_name(asset: Asset) -> str:
    """Readable, with the item's day where the name has none, and different for each address."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", asset.name).strip("-._")[:_LONGEST_NAME] or "image"
    day = "" if not asset.day or date_of_name(plain) else f"-{asset.day.replace('-', '')}"
    return f"{plain}{day}-{sha256_text(asset.url)[:8]}{_suffix(asset.url)}"


def _suffix(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path if "://" in url else url)).suffix.lower()
