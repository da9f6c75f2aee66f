"""Approximate search with faiss: its graph or inverted lists find candidates, exact products rank them (ours).

Scores and order of the found rows are those of the exact store; only whether a row is found is approximate, and
`measured_recall` measures how often it is. Needs the extra `ann`.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import DataError, MismatchError, UsageError
from cmpagl_core.files import atomic_path
from cmpagl_core.progress import Progress
from cmpagl_core.search.stores.candidates import best_of_candidates, leaves_few, wanted_candidates
from cmpagl_core.search.stores.exact import ExactStore, check_search
from cmpagl_core.search.stores.store import TopK

FaissKind = Literal["flat", "hnsw", "ivfpq"]

_GRAPH_UNTIL = 1_000_000  # rows; a graph of more takes too much memory beside the features
_NEIGHBOURS = 32  # of a node of the graph
_BUILD_BREADTH = 120
_BREADTH = 128  # candidates looked at by a search of the graph
_PROBED_SHARE = 16  # of the lists, one in so many is searched
_CODE_BYTES = 64
_ADDED_AT_ONCE = 16_384
_DEAD_SHARE = 0.3  # of an index's rows that are gone; above it, it is built again


class FaissStore:
    """A faiss index over an exact store's rows. rows: int64 [P], the row of each of its positions, -1 for none."""

    def __init__(self, exact: ExactStore, index: Any, rows: NDArray[np.int64]) -> None:
        if index.d != exact.features.shape[1] or index.ntotal != len(rows):
            raise MismatchError(
                f"the faiss index has {index.ntotal:,} positions of {index.d} numbers, not {len(rows):,} of "
                f"{exact.features.shape[1]}",
                hint="rebuild the index",
            )
        self._exact, self._index, self.rows = exact, index, rows

    def __len__(self) -> int:
        return len(self._exact)

    @classmethod
    def build(cls, exact: ExactStore, progress: Progress, kind: FaissKind | None = None) -> FaissStore:
        """Of all rows; kind: by their number if None. Raises UsageError when faiss is not installed."""
        faiss, features = _faiss(), exact.features
        index = _empty(faiss, len(features), features.shape[1], kind)
        if not index.is_trained:
            sample = np.random.default_rng(0).permutation(len(features))[: 64 * index.nlist]
            index.train(np.ascontiguousarray(features[np.sort(sample)]))
        store = cls(exact, index, np.empty(0, np.int64))
        store.add(np.arange(len(features)), progress)
        return store

    @classmethod
    def open(cls, exact: ExactStore, path: Path, rows: NDArray[np.int64]) -> FaissStore:
        """A saved one. Raises DataError for a file that faiss cannot read, MismatchError for one of other features."""
        try:
            index = _faiss().read_index(str(path))
        except RuntimeError as error:
            raise DataError(f"{path} is not a faiss index", hint="rebuild the index") from error
        return cls(exact, index, rows)

    def updated(
        self, exact: ExactStore, row_of_old: NDArray[np.int64], progress: Progress, kind: FaissKind | None = None
    ) -> FaissStore:
        """The same over other rows: those that stayed keep their positions, new ones are added.

        row_of_old: int64 [N before], where each old row is now, -1 where it is gone. Built again where too much is.
        """
        rows = np.where(self.rows < 0, -1, row_of_old[self.rows])
        if len(rows) == 0 or (rows < 0).mean() > _DEAD_SHARE:
            return FaissStore.build(exact, progress, kind)
        store = FaissStore(exact, self._index, rows)
        missing = np.ones(len(exact), dtype=bool)
        missing[rows[rows >= 0]] = False
        store.add(np.flatnonzero(missing), progress)
        return store

    def add(self, rows: NDArray[np.int64], progress: Progress) -> None:
        """Take rows of the exact store in."""
        with progress.task("add to faiss", len(rows), "img") as advance:
            for start in range(0, len(rows), _ADDED_AT_ONCE):
                part = rows[start : start + _ADDED_AT_ONCE]
                self._index.add(np.ascontiguousarray(self._exact.features[part]))
                advance(len(part))
        self.rows = np.concatenate([self.rows, rows])

    def save(self, path: Path) -> None:
        """Write the index. Raises CmpaglError when the disk refuses."""
        with atomic_path(path) as partial:
            try:
                _faiss().write_index(self._index, str(partial))
            except RuntimeError as error:  # "... write error in FILE: 0 != 1 (No space left on device)"
                raise OSError(errno.EIO, re.split(r"[:(] ?", str(error).rstrip(")"))[-1]) from error

    def top_k(self, queries: NDArray[np.float32], k: int, where: NDArray[np.bool_] | None = None) -> TopK:
        """As `Store` has it, but for rows that are not found; a filter that leaves few rows is searched exactly."""
        check_search(self._exact.features, queries, k)
        if leaves_few(where, k):
            return self._exact.top_k(queries, k, where)
        live = self.rows >= 0
        allowed = live if where is None else live & where[self.rows]
        wanted = min(int(allowed.sum()), wanted_candidates(k))
        positions = self._search(np.ascontiguousarray(queries, np.float32), wanted, None if allowed.all() else allowed)
        candidates = np.where(positions < 0, -1, self.rows[positions])
        return best_of_candidates(self._exact, queries, candidates, k, where)

    def _search(
        self, queries: NDArray[np.float32], wanted: int, allowed: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Positions [Q, wanted], -1 where none was found."""
        faiss = _faiss()
        options: dict[str, Any] = {}
        if allowed is not None:
            options["sel"] = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        if isinstance(self._index, faiss.IndexHNSW):
            parameters = faiss.SearchParametersHNSW(efSearch=max(_BREADTH, 2 * wanted), **options)
        elif isinstance(self._index, faiss.IndexIVF):
            parameters = faiss.SearchParametersIVF(nprobe=max(1, self._index.nlist // _PROBED_SHARE), **options)
        else:
            parameters = faiss.SearchParameters(**options)
        found: NDArray[np.int64] = self._index.search(queries, wanted, params=parameters)[1]
        return found


def _empty(faiss: Any, count: int, dim: int, kind: FaissKind | None) -> Any:
    kind = kind or ("hnsw" if count <= _GRAPH_UNTIL else "ivfpq")
    if kind == "flat":
        return faiss.IndexFlatIP(dim)
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _BUILD_BREADTH
        return index
    lists = int(max(1, min(4 * count**0.5, count // 39)))
    pieces = next(size for size in range(min(_CODE_BYTES, dim), 0, -1) if dim % size == 0)
    quantiser = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFPQ(quantiser, dim, lists, pieces, 8, faiss.METRIC_INNER_PRODUCT)
    index.own_fields = True
    quantiser.this.disown()
    return index


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UsageError("faiss is not installed", hint="pip install 'cmpagl[ann]', or --store exact") from error
    return faiss
