"""Encoder: what a model is to everyone who searches. CMPAGL runs and open_clip models are kinds of it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import DataError
from cmpagl_core.files import FileStamp
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.stamps import Broken
from cmpagl_core.progress import Progress

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Fingerprint:
    """What decides whether two features may stand side by side: the weights, and what was done with them."""

    model_sha256: str
    preprocessing: str
    precision: str


@dataclass(frozen=True)
class Origin:
    """How to make an encoder again: from a run's folder, or from open_clip's name and checkpoint."""

    kind: Literal["run", "open_clip"]
    source: str


@dataclass(frozen=True)
class EncodedBatch:
    """Unit features [B, D] of the readable images of a batch, their rows and stamps, and the broken ones."""

    features: Features
    rows: list[int]
    stamps: list[FileStamp]
    broken: list[Broken]


class Encoder(Protocol):
    """Images and texts to features of unit length in one space; a model that is slow to load is loaded when needed."""

    @property
    def name(self) -> str:
        """How users know it."""

    @property
    def dim(self) -> int:
        """Width of a feature."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Equal for encoders whose features can be compared."""

    @property
    def origin(self) -> Origin:
        """How to make it again."""

    def encode_images(self, images: Sequence[ImageRef]) -> Generator[EncodedBatch, None, None]:
        """Features batch by batch, in any order; rows count in `images`. Broken images are named, not raised."""

    def encode_texts(self, texts: Sequence[str]) -> Features:
        """float32 [M, D], in the order of `texts`; equal texts have equal features."""


@runtime_checkable
class HasTextTower(Protocol):
    """An encoder whose text half can be had in NumPy, so that a query needs no torch."""

    def write_text_tower(self, path: Path) -> None:
        """Write it to a file. Raises CmpaglError when the disk refuses."""


def collect(batches: Iterable[EncodedBatch], count: int, progress: Progress) -> Features:
    """All batches as one array [N, D], with a progress bar. Raises DataError for the first broken image."""
    features: Features | None = None
    with progress.task("encode images", count, "img") as advance:
        for batch in batches:
            if batch.broken:
                raise DataError(batch.broken[0].why, hint=f"mend or remove {batch.broken[0].image.path.name}")
            if features is None:
                features = np.empty((count, batch.features.shape[1]), dtype=np.float32)
            features[batch.rows] = batch.features
            advance(len(batch.rows))
    if features is None:
        raise DataError("there is no image to encode", hint="choose a split with images")
    return features
