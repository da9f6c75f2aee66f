"""A run as the encoder of a gallery: loaded when it is first needed, and one file gives one feature (ours).

A stem that stayed frozen gives its maps in half precision, as trainings cache them. So a picture whose maps are in the
cache, and one that has to be decoded, get the features that they would get the other way round.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from cmpagl_core.datasets.views import view_count
from cmpagl_core.device import usable_precision
from cmpagl_core.encoders.cached import cache_of_run, cached_features, rounded_features
from cmpagl_core.encoders.encode import (
    EncodedBatch,
    Features,
    decoder,
    encode_captions,
    encode_with,
    encoded_batches,
    forward_pass,
    preprocessing,
)
from cmpagl_core.encoders.stem_cache import CachedMaps, StemCache
from cmpagl_core.errors import DataError
from cmpagl_core.imagery.stamps import FileStamp, stamp_file
from cmpagl_core.progress import Progress
from cmpagl_core.recipe import Recipe
from cmpagl_core.runs import LoadedModel, Run


class CmpaglEncoder:
    """A run's two encoders. cache_root: a workspace's cache, where trainings may have left maps of the run's stem."""

    def __init__(
        self, run: Run, progress: Progress, device: torch.device | None = None, cache_root: Path | None = None
    ) -> None:
        self.run = run
        self._progress, self._cache_root = progress, cache_root
        self._device = device or torch.device("cpu")

    @property
    def model_sha256(self) -> str:
        """Of the weights."""
        return self.run.info.weights_sha256

    @property
    def preprocessing(self) -> str:
        """What happens to a picture, in words that artefacts keep."""
        return gallery_preprocessing(self.run.recipe)

    @property
    def precision(self) -> str:
        """That features are computed in."""
        return usable_precision(self._device, self.run.recipe.train.precision)

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model."""
        return self.run.load(self._device)

    def encode_images(self, paths: Sequence[Path]) -> Generator[EncodedBatch, None, None]:
        """Features of picture files, batch by batch in any order: those with cached maps come first."""
        cache, stamps = self._cache(), {}
        if cache is not None:
            found = enumerate(map(_stamp, paths))
            stamps = {row: stamp for row, stamp in found if stamp is not None and stamp.sha256 in cache.rows}
            if stamps:
                self._progress.say(f"{len(stamps):,} of {len(paths):,} pictures have maps that a training cached")
        with forward_pass(self.loaded):
            if cache is not None:
                yield from self._from_cache(cache, stamps)
            others = [row for row in range(len(paths)) if row not in stamps]
            for batch in self._from_files([paths[row] for row in others]):
                yield replace(batch, rows=[others[row] for row in batch.rows])

    def encode_texts(self, texts: Sequence[str]) -> Features:
        """float32 [M, D] of unit length, in the order of `texts`."""
        return encode_captions(self.loaded, texts, self._progress)

    def _from_cache(self, cache: StemCache, stamps: dict[int, FileStamp]) -> Iterator[EncodedBatch]:
        rows = list(stamps)
        source = CachedMaps(cache, tuple(stamp.sha256 for stamp in stamps.values()))
        views = view_count(self.run.recipe.evaluate.views)
        for places, features in cached_features(self.loaded, source, views):
            found = [rows[place] for place in places]
            yield EncodedBatch(features, found, [stamps[row] for row in found], [])

    def _from_files(self, paths: Sequence[Path]) -> Iterator[EncodedBatch]:
        recipe = self.run.recipe
        if not _has_frozen_stem(recipe):
            return encoded_batches(self.loaded, paths)
        views = view_count(recipe.evaluate.views)
        return encode_with(
            lambda pixel_values: rounded_features(self.loaded, pixel_values, views),
            decoder(recipe),
            paths,
            recipe.evaluate.batch_size,
        )

    def _cache(self) -> StemCache | None:
        if self._cache_root is None or not _has_frozen_stem(self.run.recipe):
            return None
        try:
            return cache_of_run(self.run, self.loaded, self._cache_root)
        except DataError as error:
            self._progress.say(f"cached maps are not used: {error}")
            return None


def gallery_preprocessing(recipe: Recipe) -> str:
    """What happens to a picture of a gallery, in words that artefacts keep."""
    rounded = ", the stem's maps in half precision" if _has_frozen_stem(recipe) else ""
    return preprocessing(recipe) + rounded


def _has_frozen_stem(recipe: Recipe) -> bool:
    part = recipe.image_encoder
    return part.stem != "patch" and (not part.stem_trainable or recipe.optim.image_lr_scale == 0)


def _stamp(path: Path) -> FileStamp | None:
    """None where the file cannot be read: whoever decodes it says why."""
    try:
        return stamp_file(path)
    except DataError:
        return None
