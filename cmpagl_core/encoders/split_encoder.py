"""SplitEncoder: a run's features of splits, which evaluation, tuning, reports and exports share."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.device import usable_precision
from cmpagl_core.encoders.encode import encode_captions, encode_images, preprocessing
from cmpagl_core.encoders.encoder import EncodesImages, collect
from cmpagl_core.encoders.feature_set import FeatureInfo, FeatureSet, is_unit_length
from cmpagl_core.encoders.result_cache import Result, ResultCache, Values
from cmpagl_core.encoders.tensor_file import open_tensor_file
from cmpagl_core.models.balance import Balance, Potentials
from cmpagl_core.progress import Progress, Silent
from cmpagl_core.runs import RECIPE_FILE, TOKENIZER_FILE, WEIGHTS_FILE, LoadedModel, Run
from cmpagl_core.session import Session

RESULTS_FOLDER = "features"  # in a workspace's cache


class SplitEncoder:
    """Encodes splits with a run's model, which is loaded only for what the workspace's cache lacks.

    session: without one, everything is computed, on the CPU. images_by: encodes images in place of the model, alike.
    """

    def __init__(self, run: Run, session: Session | None = None, images_by: EncodesImages | None = None) -> None:
        self.run, self._images_by = run, images_by
        self._session = session
        self._cache = (
            None if session is None else ResultCache(session.workspace.cache / RESULTS_FOLDER, session.progress)
        )

    @property
    def progress(self) -> Progress:
        return Silent() if self._session is None else self._session.progress

    @cached_property
    def device(self) -> torch.device:
        return torch.device("cpu") if self._session is None else self._session.device()

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model. Raises MismatchError for weights that are not the run's."""
        return self.run.load(self.device)

    def features(self, split: DataSplit, manifest_sha256: str = "") -> FeatureSet:
        """Features of a split. manifest_sha256: of its data set. Raises DataError for an unreadable image."""
        image_features, text_features = self._image_features(split), self._text_features(split)
        if self._cache is not None and image_features in self._cache and text_features in self._cache:
            self.progress.say(f"features of the {split.name} split are from {self._cache.root}")
        return FeatureSet(
            image_features=self.cached(image_features),
            text_features=self.cached(text_features),
            text_image=split.caption_image,
            image_ids=split.image_ids,
            image_sha256=split.image_sha256,
            paths=absolute_paths(split.paths),
            captions=split.captions,
            info=FeatureInfo(
                model=self.run.root.name,
                model_sha256=self.run.info.weights_sha256,
                dataset=split.dataset,
                manifest_sha256=manifest_sha256,
                split=split.name,
                split_sha256=split.sha256,
                preprocessing=preprocessing(self.run.recipe),
                precision=self._precision,
            ),
        )

    def potentials(self, features: FeatureSet) -> tuple[Potentials, Potentials]:
        """What a balanced run subtracts from the cosines of images and of texts."""
        balance = self._balance
        return balance.image_potentials(features.image_features), balance.text_potentials(features.text_features)

    @cached_property
    def _balance(self) -> Balance:
        """The run's, without the rest of its model."""
        arrays = open_tensor_file(self.run.weights_path).arrays
        balance = Balance(self.run.recipe.losses.embed_dim)
        prefix = "balance."
        own = {name: array for name, array in arrays.items() if name.startswith(prefix)}
        balance.load_state_dict({name.removeprefix(prefix): torch.tensor(array) for name, array in own.items()})
        return balance

    def cached(self, result: Result) -> Values:
        """A result, from the cache if it was computed before."""
        return result.compute() if self._cache is None else self._cache.get(result)

    def result(
        self,
        what: str,
        of: dict[str, Any],
        shape: tuple[int, ...],
        is_valid: Callable[[Values], bool],
        compute: Callable[[], Values],
    ) -> Result:
        """A result of this model on this kind of device. of: everything else that it depends on, as JSON."""
        info = self.run.info
        model = {
            "files": {name: info.files[name].sha256 for name in (WEIGHTS_FILE, RECIPE_FILE, TOKENIZER_FILE)},
            "vocab_size": info.vocab_size,
            "text_shape": info.text_shape,
            "precision": self._precision,
            "device": self.device.type,
        }
        return Result({"what": what, **model, **of}, shape, is_valid, compute)

    @property
    def _precision(self) -> str:
        return usable_precision(self.device, self.run.recipe.train.precision)

    def _image_features(self, split: DataSplit) -> Result:
        return self.result(
            "image_features",
            {"preprocessing": preprocessing(self.run.recipe), "images": split.image_keys},
            (len(split), self.run.recipe.losses.embed_dim),
            is_unit_length,
            lambda: self._encode_images(split),
        )

    def _encode_images(self, split: DataSplit) -> Values:
        if self._images_by is None:
            return encode_images(self.loaded, split.images, self.progress)
        return collect(self._images_by.encode_images(split.images), len(split), self.progress)

    def _text_features(self, split: DataSplit) -> Result:
        return self.result(
            "text_features",
            {"captions": split.captions},
            (len(split.captions), self.run.recipe.losses.embed_dim),
            is_unit_length,
            lambda: encode_captions(self.loaded, split.captions, self.progress),
        )


def absolute_paths(paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Paths that are still valid when the features are used from another folder."""
    return tuple(os.path.abspath(path) for path in paths)  # noqa: PTH100 - resolve() would follow links
