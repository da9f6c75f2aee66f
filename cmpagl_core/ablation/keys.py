"""By what a training or a trial is known again: all that enters its computation, and nothing else (ours)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass

import torch

from cmpagl_core.device import usable_precision
from cmpagl_core.files import canonical_json, sha256_text
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_keys import keyed_fields
from cmpagl_core.runs import TRAINING_VERSION, RunInfo

EVALUATION_VERSION = 2
"""Raised by hand when evaluating the same run gives other numbers: kept results are then made again."""

_NAMES: Mapping[str, str] = {
    "data.dataset": "what the data are is known by the hash of their manifest",
    "data.workers": "threads that decode ahead change no byte",
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
    """What weights come from beside their recipe."""

    manifest_sha256: str
    device: str  # its type: cpu, cuda, mps
    precision: str  # effective: the recipe's, or fp32 where the device has no other
    training_version: int = TRAINING_VERSION

    @classmethod
    def here(cls, recipe: Recipe, manifest_sha256: str, device: torch.device) -> Computation:
        """Of a training that would be done now."""
        return cls(manifest_sha256, device.type, usable_precision(device, recipe.train.precision))

    @classmethod
    def of_run(cls, info: RunInfo) -> Computation:
        """Of a training that was done."""
        return cls(info.manifest_sha256, info.device.partition(":")[0], info.precision, info.code.training_version)


def training_key(recipe: Recipe, computation: Computation) -> str:
    """Equal for trainings that give the same weights."""
    content = ["training", keyed_fields(recipe, NOT_IN_TRAINING), *astuple(computation)]
    return sha256_text(canonical_json(content))


def trial_key(
    recipe: Recipe, computation: Computation, split: str, evaluation_version: int = EVALUATION_VERSION
) -> str:
    """Equal for trials that give the same numbers; which stages are shown does not count."""
    content = ["trial", keyed_fields(recipe, NOT_IN_TRIAL), *astuple(computation), split, evaluation_version]
    return sha256_text(canonical_json(content))
