"""Search in Milvus: a Milvus Lite file or a cluster by the same address; exact products order what it finds (ours).

Images have their own keys there instead of row numbers, so that an update only writes new and deletes old ones. A
collection is partitioned by source (an image's folder, a tile's scene). Of a filter, whatever it is, Milvus is told the
sources, days and box that its images lie in, and searches there alone. Needs the extra `milvus`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import CmpaglError, UsageError
from cmpagl_core.progress import Progress
from cmpagl_core.search.stores.candidates import best_of_candidates, leaves_few, wanted_candidates
from cmpagl_core.search.stores.exact import ExactStore, check_search
from cmpagl_core.search.stores.store import TopK

_WRITTEN_AT_ONCE = 2048
_READ_AT_ONCE = 16_384
_MOST_CANDIDATES = 16_384  # Milvus's own limit
_MOST_SOURCES = 1_000  # that a condition names
_DAY, _PLACE = 0, 999.0  # of an image that has none


@dataclass(frozen=True, eq=False)
class Attributes:
    """What Milvus knows of each image: source int64 [N], day int64 [N] as an ordinal, longitude and latitude [N, 2]."""

    sources: NDArray[np.int64]
    days: NDArray[np.int64]
    places: NDArray[np.float64]

    @classmethod
    def none(cls, count: int) -> Attributes:
        """Of images of one source, without day or place."""
        zeros = np.zeros(count, dtype=np.int64)
        return cls(zeros, zeros + _DAY, np.full((count, 2), _PLACE))

    def entry(self, row: int) -> dict[str, int | float]:
        """Those of one image, by the names that they have in Milvus."""
        lon, lat = self.places[row].tolist()
        return {"source": int(self.sources[row]), "day": int(self.days[row]), "lon": lon, "lat": lat}

    def condition(self, where: NDArray[np.bool_]) -> tuple[str, int]:
        """A condition in Milvus's words that all rows of a mask [N] meet, "" for none, and how many rows meet it."""
        terms: list[str] = []
        meeting = np.ones(len(where), dtype=bool)
        sources = np.unique(self.sources[where])
        if len(sources) <= _MOST_SOURCES and len(sources) < len(np.unique(self.sources)):
            terms.append(f"source in {sources.tolist()}")
            meeting &= np.isin(self.sources, sources)
        for name, values in (("day", self.days), ("lon", self.places[:, 0]), ("lat", self.places[:, 1])):
            low, high = values[where].min(), values[where].max()
            if low > values.min() or high < values.max():
                terms.append(f"{name} >= {low.item()!r} and {name} <= {high.item()!r}")
                meeting &= (values >= low) & (values <= high)
        return " and ".join(terms), int(meeting.sum())


class MilvusStore:
    """A collection beside an exact store. keys: int64 [N], of each row, all different. attributes: asked for once."""

    def __init__(
        self,
        exact: ExactStore,
        keys: NDArray[np.int64],
        uri: str,
        collection: str,
        attributes: Callable[[], Attributes] | None = None,
    ) -> None:
        self._exact, self._collection = exact, collection
        self._find_attributes = attributes or (lambda: Attributes.none(len(exact)))
        self._order = np.argsort(keys)
        self._keys = keys
        self._sorted = keys[self._order]
        if len(keys) != len(exact) or (np.diff(self._sorted) == 0).any():
            raise UsageError("every row needs a key of its own")
        self._client = _connect(uri)

    def __len__(self) -> int:
        return len(self._exact)

    @cached_property
    def attributes(self) -> Attributes:
        """Of all rows."""
        return self._find_attributes()

    def write(self, progress: Progress) -> int:
        """Delete old rows and write missing ones. Returns the number of rows written.

        Rows are written in batches after asking the collection for its content, so a killed update can simply be
        repeated. What was written is flushed: Milvus Lite searches what is not a hundred times slower. Raises
        CmpaglError if Milvus refuses.
        """
        try:
            if not self._client.has_collection(self._collection):
                self._create()
            held = self._held()
            gone = np.setdiff1d(held, self._keys)
            for start in range(0, len(gone), _WRITTEN_AT_ONCE):
                self._client.delete(self._collection, ids=gone[start : start + _WRITTEN_AT_ONCE].tolist())
            rows = np.flatnonzero(~np.isin(self._keys, held))
            with progress.task("write to Milvus", len(rows), "img") as advance:
                for start in range(0, len(rows), _WRITTEN_AT_ONCE):
                    part = rows[start : start + _WRITTEN_AT_ONCE]
                    features = self._exact.features[part]
                    pairs = zip(self._keys[part].tolist(), features, strict=True)
                    about = [self.attributes.entry(row) for row in part.tolist()]
                    entries = [{"key": key, "feature": row} for key, row in pairs]
                    self._client.upsert(
                        self._collection, [one | more for one, more in zip(entries, about, strict=True)]
                    )
                    advance(len(part))
            if len(gone) or len(rows):
                self._client.flush(self._collection)
        except _milvus_error() as error:
            raise CmpaglError(f"Milvus refused to write {self._collection} ({_reason(error)})") from error
        return len(rows)

    def top_k(self, queries: NDArray[np.float32], k: int, where: NDArray[np.bool_] | None = None) -> TopK:
        """As in `Store`, except for rows that Milvus does not find."""
        check_search(self._exact.features, queries, k)
        if leaves_few(where, k):
            return self._exact.top_k(queries, k, where)
        condition, meeting = ("", len(self)) if where is None else self.attributes.condition(where)
        share = 1.0 if where is None else float(where.sum()) / meeting
        wanted = min(_MOST_CANDIDATES, meeting, int(wanted_candidates(k) / share))
        candidates = np.full((len(queries), wanted), -1, dtype=np.int64)
        try:
            found = self._client.search(self._collection, data=list(queries), limit=wanted, filter=condition)
        except _milvus_error() as error:
            raise CmpaglError(f"Milvus cannot search {self._collection} ({_reason(error)})") from error
        for query, hits in enumerate(found):
            keys = np.array([hit["key"] for hit in hits], dtype=np.int64)
            candidates[query, : len(keys)] = self._rows_of(keys)
        return best_of_candidates(self._exact, queries, candidates, k, where)

    def drop(self) -> None:
        """Remove the collection."""
        self._client.drop_collection(self._collection)

    def close(self) -> None:
        """Close the connection, and Milvus Lite's file with it."""
        self._client.close()

    def _rows_of(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of keys, -1 where another program wrote one that is not ours."""
        places = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[places] == keys, self._order[places], -1)

    def _held(self) -> NDArray[np.int64]:
        """The keys that the collection holds."""
        found: list[int] = []
        pages = self._client.query_iterator(self._collection, batch_size=_READ_AT_ONCE, output_fields=["key"])
        while page := pages.next():
            found += [entry["key"] for entry in page]
        pages.close()
        return np.array(found, dtype=np.int64)

    def _create(self) -> None:
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("key", DataType.INT64, is_primary=True)
        schema.add_field("feature", DataType.FLOAT_VECTOR, dim=self._exact.features.shape[1])
        schema.add_field("source", DataType.INT64, is_partition_key=True)
        schema.add_field("day", DataType.INT64)
        schema.add_field("lon", DataType.DOUBLE)
        schema.add_field("lat", DataType.DOUBLE)
        index = MilvusClient.prepare_index_params()
        index.add_index("feature", index_type="AUTOINDEX", metric_type="IP")
        self._client.create_collection(self._collection, schema=schema, index_params=index)


def row_keys(texts: Sequence[str]) -> NDArray[np.int64]:
    """A key of 63 bits for each text [N]: the same text has the same key anywhere."""
    import hashlib

    digests = (hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8] for text in texts)
    return np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64) & np.int64(2**63 - 1)


def _connect(uri: str) -> Any:
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise UsageError("pymilvus is not installed", hint="pip install 'cmpagl[milvus]', or --store exact") from error
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs what it raises as well
    try:
        return MilvusClient(uri)
    except Exception as error:  # an address that leads nowhere raises one of many kinds
        raise CmpaglError(f"Milvus at {uri} cannot be reached ({_reason(error)})", hint="check the address") from error


def _milvus_error() -> type[Exception]:
    from pymilvus import MilvusException

    error: type[Exception] = MilvusException
    return error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
