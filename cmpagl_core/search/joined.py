"""Several indexes searched as one, without copying their features: each is asked, and the answers are merged (ours)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.encoders.tensor_file import TextTable
from cmpagl_core.errors import MismatchError
from cmpagl_core.search.index import GalleryIndex, places
from cmpagl_core.search.scenes import SceneTable
from cmpagl_core.search.stores.exact import check_search
from cmpagl_core.search.stores.store import Store, TopK

Rows = NDArray[np.int64]


def search_shards(
    shards: Sequence[Store],
    queries: NDArray[np.float32],
    k: int,
    where: NDArray[np.bool_] | None = None,
    tie_order: Callable[[Rows], Rows] | None = None,
) -> TopK:
    """The k best of all shards, whose rows are counted one after the other: as of one store that has them all.

    where: as in `Store.top_k`, over all rows. tie_order: of some rows, which of two equal scores comes first; None: the
    lower row. It must agree with each shard's own order. Raises what the shards raise.
    """
    starts = np.cumsum([0, *(len(shard) for shard in shards)])
    allowed = [None if where is None else where[start:stop] for start, stop in pairwise(starts.tolist())]
    asked = [place for place, one in enumerate(allowed) if len(shards[place]) and (one is None or one.any())]
    found = [shards[place].top_k(queries, k, allowed[place]) for place in asked]
    if not found:
        return TopK(np.empty((len(queries), 0)), np.empty((len(queries), 0), dtype=np.int64))
    scores = np.concatenate([one.scores for one in found], axis=1)  # [Q, shards x k]
    rows = np.concatenate([one.rows + starts[place] for place, one in zip(asked, found, strict=True)], axis=1)
    ties = rows if tie_order is None else tie_order(rows)
    order = np.lexsort((ties, -scores), axis=1)[:, : min(k, rows.shape[1])]
    return TopK(np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1))


class JoinedStore:
    """The stores of several indexes as one. ids: of all images, by which equal scores are ordered."""

    def __init__(self, stores: Sequence[Store], features: NDArray[np.float32], ids: Sequence[str]) -> None:
        self.stores, self._features, self._ids = tuple(stores), features, ids

    def __len__(self) -> int:
        return len(self._features)

    def top_k(self, queries: NDArray[np.float32], k: int, where: NDArray[np.bool_] | None = None) -> TopK:
        """As in `Store`."""
        check_search(self._features, queries, k)
        return search_shards(self.stores, queries, k, where, self._ties)

    def changed(self, change: Callable[[Store], Store]) -> JoinedStore:
        """The same with each store changed."""
        return JoinedStore([change(store) for store in self.stores], self._features, self._ids)

    def _ties(self, rows: Rows) -> Rows:
        """The places of the ids of some rows among themselves; of equal ids the lower row comes first."""
        unique, inverse = np.unique(rows, return_inverse=True)
        return places([self._ids[row] for row in unique.tolist()])[inverse].reshape(rows.shape)


class _JoinedRows:
    """Rows of several arrays [N, D], read where they are."""

    def __init__(self, parts: Sequence[NDArray[np.float32]]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self._parts[0].shape[1]

    def __getitem__(self, wanted: Any) -> NDArray[np.float32]:
        rows = np.arange(len(self))[wanted]
        if rows.ndim == 0:
            part = int(np.searchsorted(self._starts, rows, side="right")) - 1
            return np.asarray(self._parts[part][int(rows) - self._starts[part]])
        found = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        of_part = np.searchsorted(self._starts, rows, side="right") - 1
        for part in np.unique(of_part).tolist():
            inside = of_part == part
            found[inside] = self._parts[part][rows[inside] - self._starts[part]]
        return found


def join_indexes(indexes: Sequence[GalleryIndex]) -> GalleryIndex:
    """Several indexes as one, whose features stay where they are.

    Raises MismatchError where their features cannot stand side by side.
    """
    first = indexes[0]
    for other in indexes[1:]:
        same = (other.info.fingerprint, other.info.templates) == (first.info.fingerprint, first.info.templates)
        if not same:
            raise MismatchError(
                f"indexes {first.info.name} and {other.info.name} have features of different models or preprocessing",
                hint="index both with the same model and options",
            )
    images = np.cumsum([0, *(len(index) for index in indexes)])
    texts = np.cumsum([0, *(len(index.captions) for index in indexes)])
    image_ids = _joined_texts([index.image_ids for index in indexes])
    return GalleryIndex(
        root=first.root,
        image_features=_rows([index.image_features for index in indexes]),
        image_ids=image_ids,
        paths=_joined_texts([index.paths for index in indexes]),
        windows=_windows(indexes),
        captions=_joined_texts([index.captions for index in indexes]),
        text_features=_rows([index.text_features for index in indexes]),
        caption_image=_shifted([index.caption_image for index in indexes], images),
        caption_text=_shifted([index.caption_text for index in indexes], texts),
        tie_order=None,  # `JoinedStore` orders what it finds
        stamps=None,
        info=replace(
            first.info, name=" + ".join(index.info.name for index in indexes), kind="merged", dataset="", store="exact"
        ),
        tower=first.tower,
        scenes=_scenes(indexes),
    )


def _rows(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return cast("NDArray[np.float32]", _JoinedRows(parts))


def _joined_texts(tables: Sequence[TextTable]) -> TextTable:
    sizes = np.cumsum([0, *(len(table.data) for table in tables)])
    offsets = [table.offsets[1:] + start for table, start in zip(tables, sizes, strict=False)]
    return TextTable(
        np.concatenate([table.data for table in tables]), np.concatenate([np.zeros(1, np.int64), *offsets])
    )


def _shifted(parts: Sequence[Rows], starts: Rows) -> Rows:
    return np.concatenate([part + start for part, start in zip(parts, starts, strict=False)])


def _windows(indexes: Sequence[GalleryIndex]) -> Rows | None:
    if all(index.windows is None for index in indexes):
        return None
    whole = [np.zeros((len(index), 4), dtype=np.int64) if index.windows is None else index.windows for index in indexes]
    return np.concatenate(whole)


def _scenes(indexes: Sequence[GalleryIndex]) -> SceneTable | None:
    tables = [
        SceneTable(TextTable.of(()), np.full(len(index), -1, dtype=np.int64), np.empty((0, 5), dtype=np.int64))
        if index.scenes is None
        else index.scenes
        for index in indexes
    ]
    starts = np.cumsum([0, *(len(table.texts) for table in tables)])
    if not starts[-1]:
        return None
    of_row = [np.where(one.of_row < 0, -1, one.of_row + at) for one, at in zip(tables, starts, strict=False)]
    empty = [one.empty + np.array([at, 0, 0, 0, 0]) for one, at in zip(tables, starts, strict=False)]
    return SceneTable(_joined_texts([table.texts for table in tables]), np.concatenate(of_row), np.concatenate(empty))
