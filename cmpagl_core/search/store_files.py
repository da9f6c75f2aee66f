"""The store of an index and its files: exact, a faiss index beside it, or Milvus (ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.encoders.tensor_file import open_tensor_file, write_tensor_file
from cmpagl_core.errors import GuardError, UsageError
from cmpagl_core.files import sha256_text
from cmpagl_core.progress import Progress
from cmpagl_core.search.marker import IndexFile, write_named
from cmpagl_core.search.stores.exact import ExactStore
from cmpagl_core.search.stores.store import Store

if TYPE_CHECKING:
    from cmpagl_core.search.index import GalleryIndex
    from cmpagl_core.search.stores.faiss import FaissStore
    from cmpagl_core.search.stores.milvus import Attributes

_ROWS_KIND = "rows of a faiss index"


@dataclass(frozen=True)
class StoreChoice:
    """The user's choice. min_recall: of the exact top 10, 0 to 1; an approximate index below it is refused."""

    kind: Literal["exact", "faiss", "milvus"] = "exact"
    uri: str = ""  # of Milvus
    min_recall: float = 0.0

    @classmethod
    def parse(cls, text: str, min_recall: float = 0.0) -> StoreChoice:
        """`exact`, `faiss` or `milvus:URI`. Raises UsageError for anything else."""
        kind, _, uri = text.partition(":")
        if text in ("exact", "faiss"):
            return cls(kind, "", min_recall)  # type: ignore[arg-type]  # checked just above
        if kind == "milvus" and uri:
            return cls("milvus", uri, min_recall)
        raise UsageError(
            f"store {text!r} is not known", hint="write exact, faiss, milvus:FILE.db or milvus:http://HOST"
        )

    def __str__(self) -> str:
        return f"milvus:{self.uri}" if self.kind == "milvus" else self.kind


EXACT = StoreChoice()


@dataclass(frozen=True)
class StoreFiles:
    """Files of a store for the index's marker, and its recall of the exact top 10 if approximate."""

    files: Mapping[str, IndexFile]
    recall: float | None = None


def make_store(
    choice: StoreChoice,
    index: GalleryIndex,
    before: GalleryIndex | None,
    row_of_old: NDArray[np.int64],
    progress: Progress,
) -> StoreFiles:
    """Make the store of an index that is about to be written.

    before: the index that is there now, with the same kind of features, of whose rows row_of_old [N before] says where
    they are now (-1: gone). Raises GuardError for a recall under the bar, CmpaglError when the disk or Milvus refuses.
    """
    exact = ExactStore(index.image_features)
    if choice.kind == "exact":
        return StoreFiles({})
    from cmpagl_core.search.stores.candidates import measured_recall

    if choice.kind == "milvus":
        from cmpagl_core.search.stores.milvus import MilvusStore

        milvus = MilvusStore(exact, _keys(index), choice.uri, _collection(index), partial(_attributes, index))
        try:
            milvus.write(progress)
            return StoreFiles({}, _checked(measured_recall(milvus, exact), choice))
        finally:
            milvus.close()
    from cmpagl_core.search.stores.faiss import FaissStore

    if before is not None and before.faiss is not None:
        faiss = _open_faiss(before).updated(exact, row_of_old, progress)
    else:
        faiss = FaissStore.build(exact, progress)
    recall = _checked(measured_recall(faiss, exact), choice)
    rows = partial(_write_rows, faiss.rows)
    return StoreFiles(
        {
            "faiss": write_named(index.root, "faiss", faiss.save, ".faiss"),
            "faiss_rows": write_named(index.root, "faiss_rows", rows),
        },
        recall,
    )


def open_store(index: GalleryIndex) -> Store:
    """The store of an index. Raises DataError, MismatchError or CmpaglError if it is missing."""
    exact = ExactStore(index.image_features, index.tie_order)
    choice = StoreChoice.parse(index.info.store)
    if choice.kind == "faiss" and index.faiss is not None:
        return _open_faiss(index)
    if choice.kind == "milvus":
        from cmpagl_core.search.stores.milvus import MilvusStore

        return MilvusStore(exact, _keys(index), choice.uri, _collection(index), partial(_attributes, index))
    return exact


def _open_faiss(index: GalleryIndex) -> FaissStore:
    from cmpagl_core.search.stores.faiss import FaissStore

    assert index.faiss is not None
    path, rows = index.faiss
    stored = open_tensor_file(rows).array("rows", "<i8", (None,))
    exact = ExactStore(index.image_features, index.tie_order)
    return FaissStore.open(exact, path, np.array(stored))


def _write_rows(rows: NDArray[np.int64], path: Path) -> None:
    write_tensor_file(path, {"rows": rows}, {"kind": _ROWS_KIND})


def _checked(recall: float, choice: StoreChoice) -> float:
    if recall < choice.min_recall:
        raise GuardError(
            f"the {choice.kind} store finds {100 * recall:.1f} % of the exact top 10, less than the "
            f"{100 * choice.min_recall:.1f} % of --min-recall",
            hint="nothing was changed; lower --min-recall, or use --store exact",
        )
    return recall


def _keys(index: GalleryIndex) -> NDArray[np.int64]:
    """A Milvus key per row, from its location, its content and its encoder."""
    from cmpagl_core.search.stores.milvus import row_keys

    assert index.stamps is not None
    made_by = "\0".join((index.info.model_sha256, index.info.preprocessing, index.info.precision))
    stamps: Sequence[str] = [stamp.sha256 for stamp in index.stamps]
    places = (f"{index.paths[row]}\0{index.image(row).window}" for row in range(len(index)))
    return row_keys([f"{place}\0{sha256}\0{made_by}" for place, sha256 in zip(places, stamps, strict=True)])


def _attributes(index: GalleryIndex) -> Attributes:
    """What Milvus is told of each row: its folder or scene, its day, and the middle of its footprint."""
    from cmpagl_core.search.footprints import corners, dates
    from cmpagl_core.search.stores.milvus import Attributes, row_keys

    paths = list(index.paths)
    cut = np.zeros(len(index), dtype=bool) if index.windows is None else index.windows[:, 2] > 0
    named = [path if tile else str(Path(path).parent) for path, tile in zip(paths, cut.tolist(), strict=True)]
    unique, source_of = np.unique(np.array(named, dtype=object), return_inverse=True)
    none = Attributes.none(len(index))
    days = [date.fromisoformat(day[:10]).toordinal() if day else 0 for day in dates(index)]
    middle = corners(index).mean(axis=1)
    places = np.where(np.isfinite(middle).all(axis=1)[:, None], middle, none.places)
    return Attributes(row_keys(unique.tolist())[source_of], np.array(days, dtype=np.int64), places)


def _collection(index: GalleryIndex) -> str:
    return f"cmpagl2_{sha256_text(f'{index.info.name}|{index.info.source}')[:16]}"
