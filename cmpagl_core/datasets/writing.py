"""Writes a prepared data set: the two tables first, the manifest with their hashes last."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cmpagl_core.datasets.manifest import (
    CAPTIONS_FILE,
    IMAGES_FILE,
    MANIFEST_FILE,
    SPLITS,
    Dropped,
    Manifest,
    Source,
    SplitCounts,
)
from cmpagl_core.datasets.prepared import PreparedDataset, captions_sha256, open_prepared
from cmpagl_core.datasets.same_caption import normalise_whitespace
from cmpagl_core.files import now, sha256_text, sha256_unordered, write_json, write_text
from cmpagl_core.imagery.reading import DEFAULT, Reading


@dataclass(frozen=True)
class Provenance:
    """The parts of a manifest that cannot be counted in the tables."""

    name: str
    source: str = "folder"
    layout: str = "csv"
    protocol: str = "splits as given"
    complete: bool = True
    sources: tuple[Source, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    fingerprint: str = ""
    reading: Reading = DEFAULT


def write_prepared(root: Path, images: pd.DataFrame, captions: pd.DataFrame, provenance: Provenance) -> PreparedDataset:
    """Write `images.csv`, `captions.csv` and `manifest.json` into `root`, then open them.

    images: IMAGE_COLUMNS. captions: CAPTION_COLUMNS, grouped by image in the order of `images`.
    Raises CmpaglError if writing fails, DataError for inconsistent tables.
    """
    tables = {IMAGES_FILE: _table_text(images), CAPTIONS_FILE: _table_text(captions)}
    split_of = dict(zip(images["image_id"], images["split"], strict=True))
    split_of_caption = captions["image_id"].map(split_of)
    parts = {split: captions[split_of_caption == split] for split in SPLITS}
    manifest = Manifest(
        name=provenance.name,
        made_at=now(),
        source=provenance.source,
        layout=provenance.layout,
        protocol=provenance.protocol,
        complete=provenance.complete,
        counts={split: _count(images[images["split"] == split], part) for split, part in parts.items()},
        split_sha256={
            split: captions_sha256(list(part["image_id"]), list(part["text"])) for split, part in parts.items()
        },
        images_sha256=_images_sha256(images),
        files={file: sha256_text(text) for file, text in tables.items()},
        sources=provenance.sources,
        dropped=provenance.dropped,
        fingerprint=provenance.fingerprint,
        bands=provenance.reading.bands,
        stretch=provenance.reading.stretch,
    )
    for file, text in tables.items():
        write_text(root / file, text)
    write_json(root / MANIFEST_FILE, manifest.model_dump(mode="json"))
    return open_prepared(root)


def _table_text(table: pd.DataFrame) -> str:
    # all cells quoted: pandas does not quote a lone carriage return, but reads it as the end of a line
    return str(table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_ALL))


def _count(images: pd.DataFrame, captions: pd.DataFrame) -> SplitCounts:
    unique = {normalise_whitespace(text) for text in captions["text"]}
    return SplitCounts(images=len(images), captions=len(captions), unique_captions=len(unique))


def _images_sha256(images: pd.DataFrame) -> str:
    rows = zip(images["image_id"], images["split"], images["sha256"], strict=True)
    return sha256_unordered("\t".join(row) for row in rows)
