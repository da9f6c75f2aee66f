"""Measures time and memory: of a few optimiser steps, of decoding an image, of caching a backbone's maps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmpagl_core.datasets.loading import PairBatch
from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.device import autocast
from cmpagl_core.encoders.backbone_cache import BackboneCache, views_needed
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import read_pixel_values
from cmpagl_core.recipe import Recipe
from cmpagl_core.training.learner import Learner, caches_until
from cmpagl_core.training.step import accumulate, update

MEASURED_STEPS = 3
CPU_PAIRS = 8
_QUICK_S = 3.0
_IN_FLIGHT = 1.3  # memory of a backward pass beyond the saved activations; measured with ucm-cpu at 64 and 128 pairs
_DECODED = 16


@dataclass(frozen=True)
class Cost:
    """Cost of one micro-batch, including its optimiser step."""

    elapsed_s: float
    activation_bytes: int

    @classmethod
    def at(cls, pairs: int, measured: Mapping[int, Cost]) -> Cost:
        """Extrapolated linearly from the measured sizes, with a slope of at least half of proportional.

        On a noisy machine the line is off; growth beyond proportional is noise, as no cost is quadratic in pairs.
        """
        if pairs in measured:
            return measured[pairs]
        (small, less), (large, more) = min(measured.items()), max(measured.items())
        share = more.elapsed_s / large
        steepness = min(max((more.elapsed_s - less.elapsed_s) / (large - small), share / 2), share)
        grown = max(0, more.activation_bytes - less.activation_bytes) / (large - small)
        beyond = pairs - large
        return cls(more.elapsed_s + beyond * steepness, int(more.activation_bytes + beyond * grown))


def measure_sizes(learner: Learner, pairs: int, captions: Sequence[str]) -> dict[int, Cost]:
    """Costs of micro-batches: on a GPU at full size; on a CPU with a few pairs, and with more if that is quick."""
    if learner.device.type == "cuda" or pairs <= CPU_PAIRS:
        return {pairs: measure(learner, pairs, captions)}
    few = measure(learner, CPU_PAIRS, captions)
    other = min(pairs, 4 * CPU_PAIRS) if few.elapsed_s < _QUICK_S else CPU_PAIRS // 2
    return {CPU_PAIRS: few, other: measure(learner, other, captions)}


def measure(learner: Learner, pairs: int, captions: Sequence[str]) -> Cost:
    """The fastest of a few steps on random images and captions of typical length, after a warm-up step."""
    learner.model.train()
    batch = _random_batch(learner, pairs, captions)
    kept = _KeptTensors({parameter.untyped_storage().data_ptr() for parameter in learner.model.parameters()})
    with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
        _step(learner, batch)
    if learner.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(learner.device)
    spans = [_step(learner, batch) for _ in range(MEASURED_STEPS)]
    if learner.device.type == "cuda":
        activations = torch.cuda.max_memory_allocated(learner.device) - resident_bytes(learner)
        return Cost(min(spans), max(kept.bytes, activations))
    return Cost(min(spans), int(kept.bytes * _IN_FLIGHT))


def resident_bytes(learner: Learner) -> int:
    """Bytes that stay allocated: weights, gradients, AdamW's two moments and the moving average."""
    copies = 4 if learner.average is None else 5
    return sum(
        parameter.numel() * parameter.element_size() * (copies if parameter.requires_grad else 1)
        for parameter in learner.model.parameters()
    )


def use_cache(learner: Learner, images: int) -> tuple[int, float]:
    """Give the learner cached maps instead of images where its recipe caches them.

    Returns the cache's size in bytes and the seconds to fill it; zeros without a cache.
    """
    recipe, backbone = learner.recipe, learner.backbone
    views = views_needed(recipe)
    if backbone is None or caches_until(recipe, views) == 0:
        return 0, 0.0
    size = recipe.data.image_size_px
    pixel_values = torch.randn(2 * len(views), 3, size, size, device=learner.device)
    with torch.inference_mode(), autocast(learner.device, recipe.train.precision):
        backbone.parts(pixel_values)
        started_at = time.monotonic()
        parts = backbone.parts(pixel_values)
        if learner.device.type == "cuda":
            torch.cuda.synchronize(learner.device)
        elapsed_s = (time.monotonic() - started_at) / 2
    values = sum(part[0].numel() for part in parts)
    shapes = tuple((part.shape[1], part.shape[2], part.shape[3]) for part in parts)
    learner.cache = BackboneCache(shapes, views, (), {})
    return 2 * values * len(views) * images, elapsed_s * images


def decode_seconds(split: DataSplit | None, recipe: Recipe) -> float:
    """Median seconds to decode an image of the split; 0 without one."""
    if split is None:
        return 0.0
    return statistics.median(_decode(image, recipe.data.image_size_px) for image in split.images[:_DECODED])


class _KeptTensors:
    """Counts the bytes that autograd saves for the backward pass, without the weights."""

    def __init__(self, weights: set[int]) -> None:
        self._seen = set(weights)
        self.bytes = 0

    def keep(self, tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in self._seen:
            self._seen.add(place)
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor


def _step(learner: Learner, batch: PairBatch) -> float:
    started_at = time.monotonic()
    accumulate(learner, [batch], epoch=0, step=0, with_shares=False)
    update(learner, step=0, share=0.0)
    if learner.device.type == "cuda":
        torch.cuda.synchronize(learner.device)
    return time.monotonic() - started_at


def _random_batch(learner: Learner, pairs: int, captions: Sequence[str]) -> PairBatch:
    rng = np.random.default_rng(0)
    texts = [captions[int(row)] for row in rng.integers(len(captions), size=pairs)]
    tokens = learner.tokenizer(texts)
    size = learner.recipe.data.image_size_px
    shape = (3, size, size) if learner.cache is None else (sum(int(np.prod(one)) for one in learner.cache.shapes),)
    images = torch.randn(pairs, *shape, generator=torch.Generator().manual_seed(0))
    positives = torch.eye(pairs, dtype=torch.bool)
    return PairBatch(images, tokens.input_ids, tokens.attention_mask, positives, tuple(texts))


def _decode(image: ImageRef, image_size_px: int) -> float:
    started_at = time.monotonic()
    read_pixel_values(image.path, image_size_px, image.reading)
    return time.monotonic() - started_at
