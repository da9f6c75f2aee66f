"""STAC over HTTP: the items of an API's search, or of a static catalogue, by pystac-client (extra `geo`).

Every page comes from the address that the user named or from below it, without redirects, and in bounded size; where
an item's images lie is checked by whoever reads them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from cmpagl_core.errors import CmpaglError, DataError, UsageError

NOT_IMAGERY = frozenset({"thumbnail", "overview", "metadata"})  # roles of assets

_MOST_BYTES = 64 << 20  # of a page
_TIMEOUT_S = 60.0
_ITEMS_A_PAGE = 100

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ItemQuery:
    """Which items are meant. bbox: west, south, east, north. since, until: days, both included, "" for none.

    collections, assets: names; all if empty. most: items at most.
    """

    bbox: Box | None = None
    since: str = ""
    until: str = ""
    collections: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    most: int = 10_000


@dataclass(frozen=True)
class Asset:
    """One image of an item: a name of both, where it lies, and the item's day, "" for none."""

    name: str
    url: str
    day: str = ""


def catalogue_assets(url: str, query: ItemQuery) -> list[Asset]:
    """The images of the items that a query means. Raises DataError where the address is no STAC, UsageError without
    pystac-client."""
    try:
        from pystac_client import Client
    except ImportError as error:
        raise UsageError("pystac-client is not installed", hint="pip install 'cmpagl[geo]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of catalogues that are no API
            client = Client.open(url, stac_io=_bounded_io(url))
            items = _searched(client, query) if _is_api(client) else _walked(client, query)
            return [asset for item in islice(items, query.most) for asset in _assets(item, query)]
    except CmpaglError:
        raise
    except Exception as error:  # a catalogue is anybody's JSON, and breaks in as many ways
        for cause in (error.__cause__, error.__context__):
            if isinstance(cause, CmpaglError):
                raise cause from error
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{url} cannot be read as STAC ({type(error).__name__}: {said})") from error


def _is_api(client: Any) -> bool:
    return any(link.rel == "search" for link in client.links)


def _searched(client: Any, query: ItemQuery) -> Iterator[Any]:
    if not client.has_conforms_to():  # some only link their search
        client.add_conforms_to("ITEM_SEARCH")
    found = client.search(
        method="GET",
        max_items=query.most,
        limit=min(_ITEMS_A_PAGE, query.most),
        collections=list(query.collections) or None,
        bbox=query.bbox,
        datetime=f"{query.since or '..'}/{query.until or '..'}" if query.since or query.until else None,
    )
    yield from found.items()


def _walked(catalogue: Any, query: ItemQuery) -> Iterator[Any]:
    """The items of a static catalogue, of which we choose ourselves."""
    for item in catalogue.get_items(recursive=True):
        day = _day(item)
        if query.collections and item.collection_id not in query.collections:
            continue
        if (query.since or query.until) and not _is_within(day, query.since, query.until):
            continue
        if query.bbox is None or item.bbox is None or _touch(item.bbox, query.bbox):
            yield item


def _assets(item: Any, query: ItemQuery) -> Iterator[Asset]:
    for key, asset in item.assets.items():
        kind, roles = asset.media_type or "", asset.roles or ()
        asked = key in query.assets if query.assets else NOT_IMAGERY.isdisjoint(roles)
        if asked and (query.assets or kind.startswith("image/") or not kind):
            yield Asset(f"{item.id}-{key}", str(asset.get_absolute_href() or asset.href), _day(item))


def _day(item: Any) -> str:
    taken: datetime | None = item.datetime or item.common_metadata.start_datetime
    if taken is None:
        return ""
    return (taken if taken.tzinfo is None else taken.astimezone(UTC)).date().isoformat()


def _is_within(day: str, since: str, until: str) -> bool:
    return bool(day) and day[: len(since)] >= since and (not until or day[: len(until)] <= until)


def _touch(one: Any, other: Box) -> bool:
    """Whether two boxes touch; STAC's may have heights, and where west is above east, cross the antimeridian."""
    west, south, east, north = (float(one[place]) for place in ((0, 1, 2, 3) if len(one) == 4 else (0, 1, 3, 4)))
    spans = [[(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]]
    spans.append([(other[0], other[2])] if other[0] <= other[2] else [(other[0], 180.0), (-180.0, other[2])])
    across = any(a[0] <= b[1] and b[0] <= a[1] for a in spans[0] for b in spans[1])
    return across and south <= other[3] and other[1] <= north


def _bounded_io(named: str) -> Any:
    from pystac_client.stac_api_io import StacApiIO

    origin = urlsplit(named)[:2]

    class BoundedIO(StacApiIO):  # type: ignore[misc]  # it has no types here
        """Asks the host that the user named, and no other."""

        def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
            href = source.href if hasattr(source, "href") else str(source)
            if "://" not in href:
                raise DataError(f"{named} leads to {href[:200]}, which is no address")
            return str(super().read_text(source, *args, **kwargs))

        def request(
            self, href: str, method: str | None = None, headers: Any = None, parameters: dict[str, Any] | None = None
        ) -> str:
            if urlsplit(href)[:2] != origin:
                raise DataError(f"{named} leads to {href[:200]}, and other hosts are not asked for items")
            posts = (method or "GET").upper() == "POST"
            content = {"json": parameters} if posts else {"params": parameters or {}}
            with self.session.request(
                "POST" if posts else "GET", href, stream=True, timeout=_TIMEOUT_S, allow_redirects=False, **content
            ) as answer:
                if answer.status_code != 200:
                    raise DataError(f"{href[:200]} cannot be read ({answer.status_code} {answer.reason})")
                parts, size = [], 0
                for part in answer.iter_content(1 << 16):
                    parts.append(part)
                    size += len(part)
                    if size > _MOST_BYTES:
                        raise DataError(f"{href[:200]} answers with more than {_MOST_BYTES:,} bytes")
            return b"".join(parts).decode("utf-8")

    return BoundedIO(max_retries=2)
