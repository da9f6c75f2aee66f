"""Managing indexes: list, describe, verify against their files, prune and merge (ours).

Pruning and merging build an index from known features, so no model is loaded.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cmpagl_core.encoders.encoder import EncodedBatch, Encoder, Features, Fingerprint, Origin
from cmpagl_core.errors import CmpaglError, MismatchError, UsageError
from cmpagl_core.files import made_at
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.stamps import unchanged_files
from cmpagl_core.imagery.tiles import Tiling
from cmpagl_core.progress import Progress
from cmpagl_core.search.gallery_source import Entry, GallerySource
from cmpagl_core.search.index import GalleryIndex, IndexInfo, open_index
from cmpagl_core.search.indexing import BuiltIndex, build_index
from cmpagl_core.search.marker import INFO_FILE
from cmpagl_core.search.opening import encoder_of
from cmpagl_core.search.store_files import StoreChoice
from cmpagl_core.session import Session
from cmpagl_core.workspace import MARKERS, Workspace

SAME_COSINE = 1 - 1e-4  # of two encodings of one image on machines that round differently


@dataclass(frozen=True)
class IndexSummary:
    """A summary of an index, as shown by `list` and `info`."""

    info: IndexInfo
    root: Path
    images: int
    captions: int
    dim: int
    bytes: int
    made_at: str

    @classmethod
    def of(cls, index: GalleryIndex) -> IndexSummary:
        files = [path for path in index.root.iterdir() if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        count, dim = index.image_features.shape
        made = made_at(index.root / INFO_FILE)
        return cls(index.info, index.root, count, len(index.caption_text), dim, size, made)

    def document(self) -> dict[str, Any]:
        """As one flat JSON object."""
        about = asdict(self.info)
        own = {key: value for key, value in vars(self).items() if key not in ("info", "root")}
        return {**about, **own, "path": str(self.root)}


@dataclass(frozen=True)
class Verified:
    """State of an index's images: the number of missing and changed files, and how a sample encodes now.

    lowest_cosine: between the sample's features and the index's, 1 at best; None if no image was encoded.
    """

    images: int
    gone: tuple[str, ...]
    changed: tuple[str, ...]
    sampled: int
    lowest_cosine: float | None

    @property
    def is_sound(self) -> bool:
        """Nothing missing or changed, and the sample has the same features."""
        alike = self.lowest_cosine is None or self.lowest_cosine >= SAME_COSINE
        return alike and not self.gone and not self.changed


def list_indexes(workspace: Workspace, progress: Progress) -> list[IndexSummary]:
    """The workspace's indexes, newest first. Broken ones are reported through `progress` and left out."""
    found = []
    for marker in (workspace.root / "indexes").glob(f"*/{MARKERS['indexes']}"):
        try:
            found.append(IndexSummary.of(open_index(marker.parent)))
        except CmpaglError as error:
            progress.say(f"left out: {error}")
    return sorted(found, key=lambda one: (one.made_at, one.info.name), reverse=True)


def verify_index(session: Session, index: GalleryIndex, samples: int = 100, seed: int = 0) -> Verified:
    """Compare an index with its files: all by their stamps, a sample by encoding it again.

    Raises what making the index's encoder raises.
    """
    gone, changed, whole, is_unchanged = [], [], [], unchanged_files()
    assert index.stamps is not None, "an index of files knows its files"
    with session.progress.task("compare files", len(index), "img") as advance:
        for row, stamp in enumerate(index.stamps):
            image = index.image(row)
            if not image.path.is_file():
                gone.append(image.image_id)
            elif not is_unchanged(image.path, stamp):
                changed.append(image.image_id)
            else:
                whole.append(row)
            advance(1)
    rows = np.sort(np.random.default_rng(seed).permutation(np.array(whole, dtype=np.int64))[:samples])
    lowest = _lowest_cosine(session, index, rows.tolist()) if len(rows) else None
    return Verified(len(index), tuple(gone), tuple(changed), len(rows), lowest)


def prune_index(session: Session, index: GalleryIndex) -> BuiltIndex:
    """Drop the images whose files are missing or have changed; nothing is encoded.

    Raises DataError if none would be left.
    """
    assert index.stamps is not None, "an index of files knows its files"
    entries, is_unchanged = [], unchanged_files()
    for row, stamp in enumerate(index.stamps):
        image = index.image(row)
        if image.path.is_file() and is_unchanged(image.path, stamp):
            entries.append(Entry(image, tuple(index.captions_of(row))))
    info = index.info
    source = GallerySource(
        info.kind, info.source, info.dataset, info.manifest_sha256, tuple(entries),  # type: ignore[arg-type]
        reading=info.reading, tiling=Tiling.parse(info.tiling), is_cut=True,
    )  # fmt: skip
    choice = StoreChoice.parse(info.store)
    return build_index(_recorded(index), source, index.root, session.progress, store=choice)


def merge_indexes(session: Session, indexes: Sequence[GalleryIndex], name: str) -> BuiltIndex:
    """One index of several that were made by the same model in the same way; nothing is encoded.

    An image id that several have gets the name of its index before it. Raises UsageError for fewer than two, or for a
    name that is taken, MismatchError where features cannot stand side by side.
    """
    if len(indexes) < 2:
        raise UsageError("there is nothing to merge", hint="pass two indexes or more")
    root = session.workspace.folder("indexes", name)
    if (root / INFO_FILE).is_file():
        raise UsageError(f"there is an index {name} already", hint="choose another --name")
    first = indexes[0]
    for other in indexes[1:]:
        if other.info.fingerprint != first.info.fingerprint:
            raise MismatchError(
                f"indexes {first.info.name} and {other.info.name} have features of different models or preprocessing",
                hint="index both with the same model and options",
            )
    entries = _merged_entries(indexes)
    roots = os.pathsep.join(str(index.root) for index in indexes)
    source = GallerySource("merged", roots, "", "", entries, reading=first.info.reading, is_cut=True)
    try:
        return build_index(_recorded(first), source, root, session.progress, known=indexes)
    except CmpaglError:
        shutil.rmtree(root, ignore_errors=True)
        raise


def _merged_entries(indexes: Sequence[GalleryIndex]) -> tuple[Entry, ...]:
    """The images of all, each place once, sorted by id."""
    counted = Counter(image_id for index in indexes for image_id in index.image_ids)
    shared = {image_id for image_id, count in counted.items() if count > 1}
    entries: dict[Any, Entry] = {}
    for index in indexes:
        for row in range(len(index)):
            image = index.image(row)
            if image.place not in entries:
                named = f"{index.info.name}/{image.image_id}" if image.image_id in shared else image.image_id
                entries[image.place] = Entry(image.renamed(named), tuple(index.captions_of(row)))
    return tuple(sorted(entries.values(), key=lambda entry: entry.image.image_id))


def _lowest_cosine(session: Session, index: GalleryIndex, rows: Sequence[int]) -> float:
    encoder = encoder_of(index, session)
    lowest = 1.0
    with session.progress.task("encode again", len(rows), "img") as advance:
        for batch in encoder.encode_images([index.image(row) for row in rows]):
            stored = index.image_features[[rows[place] for place in batch.rows]]
            if batch.broken:
                lowest = -1.0
            if len(batch.rows):
                lowest = min(lowest, float((stored * batch.features).sum(axis=1).min()))
            advance(len(batch.rows) + len(batch.broken))
    return lowest


class _RecordedEncoder:
    """The encoder of an index as the index remembers it: its name and fingerprint, and nothing that encodes."""

    def __init__(self, index: GalleryIndex) -> None:
        info = index.info
        self.name, self.dim, self.batch_size = info.model, index.image_features.shape[1], 1
        self.fingerprint: Fingerprint = info.encoder_fingerprint
        self.origin = Origin(info.model_kind or "run", info.model_source)

    def encode_images(self, images: Sequence[ImageRef]) -> Generator[EncodedBatch, None, None]:
        raise AssertionError("all features are known")

    def encode_texts(self, texts: Sequence[str]) -> Features:
        raise AssertionError("all features are known")


class _RecordedWithTower(_RecordedEncoder):
    """One whose text half is a file."""

    def __init__(self, index: GalleryIndex, tower: Path) -> None:
        super().__init__(index)
        self.write_text_tower = partial(shutil.copyfile, tower)


def _recorded(index: GalleryIndex) -> Encoder:
    return _RecordedEncoder(index) if index.tower is None else _RecordedWithTower(index, index.tower)
