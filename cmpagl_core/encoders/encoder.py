"""Encoder: the interface of a model for search. CMPAGL runs and open_clip models implement it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.files import FileStamp
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.stamps import Broken
from cmpagl_core.progress import Progress

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Fingerprint:
    """What must be equal for features to be comparable: weights, preprocessing and precision."""

    model_sha256: str
    preprocessing: str
    precision: str


@dataclass(frozen=True)
class Origin:
    """How to rebuild an encoder: from a run's folder, or from open_clip's name and checkpoint."""

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
    """Images and texts to unit-length features in one space; models that load slowly are loaded on first use."""

    @property
    def name(self) -> str:
        """The name for users."""

    @property
    def dim(self) -> int:
        """Width of a feature."""

    @property
    def batch_size(self) -> int:
        """Images that are encoded together: with others in a batch, an image's features differ in their last bits."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Equal for encoders whose features can be compared."""

    @property
    def origin(self) -> Origin:
        """How to rebuild it."""

    def encode_images(self, images: Sequence[ImageRef]) -> Generator[EncodedBatch, None, None]:
        """Features batch by batch, in any order, with rows of `images`. Broken images are returned, not raised."""

    def encode_texts(self, texts: Sequence[str]) -> Features:
        """float32 [M, D], in the order of `texts`; equal texts have equal features."""


class EncodesImages(Protocol):
    """An encoder, or whatever encodes images in place of one."""

    def encode_images(self, images: Sequence[ImageRef]) -> Generator[EncodedBatch, None, None]:
        """As `Encoder.encode_images`."""


@runtime_checkable
class HasTextTower(Protocol):
    """An encoder whose text encoder also exists in NumPy, so that a query needs no torch."""

    def write_text_tower(self, path: Path) -> None:
        """Write it to a file. Raises CmpaglError if writing fails."""


def require_one_row_each(rows: Sequence[int], count: int) -> None:
    """Raises CmpaglError unless the rows are all those of `count` images, each once."""
    if sorted(rows) != list(range(count)):
        raise CmpaglError(f"{len(rows):,} results came for {count:,} images", hint="run the same command again")


def collect(batches: Iterable[EncodedBatch], count: int, progress: Progress) -> Features:
    """All batches as one array [N, D], with a progress bar. Raises DataError for the first broken image."""
    features: Features | None = None
    with progress.task("encode images", count, "img") as advance, ExitStack() as ending:
        if isinstance(batches, Generator):
            ending.callback(batches.close)  # at once, not when it is collected: until then its settings of torch hold
        for batch in batches:
            if batch.broken:
                raise DataError(batch.broken[0].why, hint=f"repair or remove {batch.broken[0].image.path.name}")
            if features is None:
                features = np.empty((count, batch.features.shape[1]), dtype=np.float32)
            features[batch.rows] = batch.features
            advance(len(batch.rows))
    if features is None:
        raise DataError("there are no images to encode", hint="choose a split with images")
    return features
