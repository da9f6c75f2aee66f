"""Measures time and memory: of a few optimiser steps, of decoding an image, of caching a backbone's maps."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cmpagl_core.datasets.loading import PairBatch
from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.encoders.backbone_cache import (
    BackboneCache,
    backbone_settings,
    map_shapes,
    maps_encoder,
    views_needed,
    weights_sha256,
)
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import read_pixel_values
from cmpagl_core.progress import Silent
from cmpagl_core.recipe import Recipe
from cmpagl_core.training.learner import Learner, caches_until
from cmpagl_core.training.step import accumulate, update

MEASURED_STEPS = 3
CPU_PAIRS = 8
_QUICK_S = 3.0
_IN_FLIGHT = 1.3  # memory of a backward pass beyond the saved activations; measured with ucm-cpu at 64 and 128 pairs
_DECODED = 16
_CACHED = 4  # images whose maps are timed
_TOKEN_COPIES = 6  # of all tokens with GradCache: kept, drawn for ITM, and their gradients
_SCORE_COPIES = 12  # of the N x N scores of ITC and the triplet loss, both ways; measured from N = 4,096 on


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


def in_chunks(learner: Learner, chunk: Cost, pairs: int, captions: Sequence[str]) -> Cost:
    """The cost of a micro-batch with GradCache, from that of one chunk: time and kept tokens grow with the pairs."""
    size, encoder, text = learner.recipe.train.chunk_size, learner.model.image_encoder, learner.model.text_encoder
    words = max(map(len, learner.tokenizer(captions).input_ids.tolist()))
    tokens = encoder.width * (encoder.last_map_size**2 + 1) + words * text.shape.hidden_size
    copies = _TOKEN_COPIES if learner.recipe.losses.uses_fusion else _TOKEN_COPIES / 2
    kept = pairs * (_image_values(learner) + int(copies * tokens)) + _SCORE_COPIES * pairs**2
    return Cost(chunk.elapsed_s * pairs / size, chunk.activation_bytes + 4 * kept)


def measure(learner: Learner, pairs: int, captions: Sequence[str]) -> Cost:
    """The fastest of a few steps on random images and captions of typical length, after a warm-up step."""
    learner.model.train()
    batch = _random_batch(learner, pairs, captions)
    kept = _KeptTensors({parameter.untyped_storage().data_ptr() for parameter in learner.model.parameters()})
    with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda one: one.tensor):
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
    settings = backbone_settings(recipe, learner.device)
    shapes = map_shapes(backbone, settings, learner.device)
    values = sum(int(np.prod(shape)) for shape in shapes)
    learner.cache = BackboneCache(shapes, views, (), {})
    with tempfile.TemporaryDirectory() as folder:
        encoder = maps_encoder(
            Path(folder), backbone, settings, weights_sha256(backbone), images, learner.device, Silent()
        )
        image = _noise_image(Path(folder), settings.image_size_px)
        list(encoder.batches([image]))
        started_at = time.monotonic()
        list(encoder.batches([image] * _CACHED))
        elapsed_s = (time.monotonic() - started_at) / _CACHED
    return 2 * values * len(views) * images, elapsed_s * images


def _noise_image(folder: Path, size_px: int) -> ImageRef:
    pixels = np.random.default_rng(0).integers(0, 256, (size_px, size_px, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    return ImageRef("noise", folder / "noise.png")


def decode_seconds(split: DataSplit | None, recipe: Recipe) -> float:
    """Median seconds to decode an image of the split; 0 without one."""
    if split is None:
        return 0.0
    return statistics.median(_decode(image, recipe.data.image_size_px) for image in split.images[:_DECODED])


class _KeptTensors:
    """The most bytes that autograd keeps for a backward pass at any time, without the weights."""

    def __init__(self, weights: set[int]) -> None:
        self._weights = weights
        self._users: Counter[int] = Counter()
        self._bytes = 0
        self.bytes = 0

    def keep(self, tensor: Tensor) -> _Kept:
        place = tensor.untyped_storage().data_ptr()
        if place not in self._weights:
            self._users[place] += 1
            if self._users[place] == 1:
                self._bytes += tensor.untyped_storage().nbytes()
                self.bytes = max(self.bytes, self._bytes)
        return _Kept(tensor, self)

    def let_go(self, tensor: Tensor) -> None:
        place = tensor.untyped_storage().data_ptr()
        if place not in self._weights:
            self._users[place] -= 1
            if self._users[place] == 0:
                self._bytes -= tensor.untyped_storage().nbytes()


class _Kept:
    """A tensor until autograd needs it no more."""

    def __init__(self, tensor: Tensor, counted: _KeptTensors) -> None:
        self.tensor = tensor
        self._counted = counted

    def __del__(self) -> None:
        self._counted.let_go(self.tensor)


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
    shape = _image_shape(learner)
    images = torch.randn(pairs, *shape, generator=torch.Generator().manual_seed(0))
    positives = torch.eye(pairs, dtype=torch.bool)
    return PairBatch(images, tokens.input_ids, tokens.attention_mask, positives, tuple(texts))


def _image_shape(learner: Learner) -> tuple[int, ...]:
    size = learner.recipe.data.image_size_px
    return (3, size, size) if learner.cache is None else (sum(int(np.prod(one)) for one in learner.cache.shapes),)


def _image_values(learner: Learner) -> int:
    return int(np.prod(_image_shape(learner)))


def _decode(image: ImageRef, image_size_px: int) -> float:
    started_at = time.monotonic()
    read_pixel_values(image.path, image_size_px, image.reading)
    return time.monotonic() - started_at
