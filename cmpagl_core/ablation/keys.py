"""Keys of trainings and trials: everything that affects their computation, and nothing else (ours)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cmpagl_core.device import usable_precision
from cmpagl_core.files import canonical_json, sha256_text
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_keys import keyed_fields
from cmpagl_core.runs import TRAINING_VERSION, RunInfo

EVALUATION_VERSION = 2
"""Incremented by hand when evaluating the same run gives other numbers, so that saved results are recomputed."""

_NAMES: Mapping[str, str] = {
    "data.dataset": "data are identified by the hash of their manifest",
    "data.workers": "threads that decode ahead change no byte",
    "distill.datasets": "what a start is distilled from is known by the start's own key",
}
NOT_IN_TRAINING: Mapping[str, str] = {
    **_NAMES,
    "evaluate.batch_size": "features do not depend on how many images are encoded at once",
    "evaluate.itm_k": "validation scores every pair, or none",
    "evaluate.smr": "re-ranking comes after the weights",
    "evaluate.smr_form": "re-ranking comes after the weights",
    "evaluate.smr_gammas": "re-ranking comes after the weights",
}
NOT_IN_TRIAL: Mapping[str, str] = {
    **_NAMES,
    "evaluate.batch_size": "features do not depend on how many images are encoded at once",
}


@dataclass(frozen=True)
class Computation:
    """What weights depend on besides their recipe."""

    manifest_sha256: str
    device: str  # its type: cpu, cuda, mps
    precision: str  # effective: the recipe's, or fp32 if the device does not support it
    training_version: int = TRAINING_VERSION
    start_key: str = ""  # of the distilled weights that it begins with, if it does

    @classmethod
    def here(cls, recipe: Recipe, manifest_sha256: str, device: torch.device, start_key: str = "") -> Computation:
        """Of a training that would run now."""
        precision = usable_precision(device, recipe.train.precision)
        return cls(manifest_sha256, device.type, precision, start_key=start_key)

    @classmethod
    def of_run(cls, info: RunInfo) -> Computation:
        """Of a finished training."""
        device = info.device.partition(":")[0]
        return cls(info.manifest_sha256, device, info.precision, info.code.training_version, info.start_key)

    def values(self) -> list[str | int]:
        """What goes into a key; a training without a distilled start has the key that it always had."""
        values: list[str | int] = [self.manifest_sha256, self.device, self.precision, self.training_version]
        return [*values, self.start_key] if self.start_key else values


def training_key(recipe: Recipe, computation: Computation) -> str:
    """Equal for trainings with the same weights."""
    content = ["training", keyed_fields(recipe, NOT_IN_TRAINING), *computation.values()]
    return sha256_text(canonical_json(content))


def trial_key(
    recipe: Recipe, computation: Computation, split: str, evaluation_version: int = EVALUATION_VERSION
) -> str:
    """Equal for trials with the same numbers, whichever stages are shown."""
    content = ["trial", keyed_fields(recipe, NOT_IN_TRIAL), *computation.values(), split, evaluation_version]
    return sha256_text(canonical_json(content))
