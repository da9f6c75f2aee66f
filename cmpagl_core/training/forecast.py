"""Estimates a training's parameters, peak memory, steps and time from a few measured steps (`--dry-run`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.datasets.published import PUBLISHED
from cmpagl_core.datasets.splits import selection_splits
from cmpagl_core.errors import DataError
from cmpagl_core.models.bert import bert_shape
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.models.summary import BERT_VOCABULARY
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.models.weights import reachable
from cmpagl_core.progress import Progress
from cmpagl_core.recipe import Recipe
from cmpagl_core.training.learner import Learner, make_learner
from cmpagl_core.training.measure import (
    MEASURED_STEPS,
    Cost,
    decode_seconds,
    in_chunks,
    measure_sizes,
    resident_bytes,
    use_cache,
)
from cmpagl_core.training.start import TrainRequest, requested_data, requested_recipe
from cmpagl_core.workspace import Workspace

_USUAL_CAPTION = "there are many buildings and green trees near a road with cars"  # of the public sets' mean length


_DISTILLED = "a start is distilled first, once for all seeds; its time is not in here"


@dataclass(frozen=True)
class TrainingForecast:
    """Memory in bytes, on the computing device; times in seconds."""

    recipe: str
    device: str
    parameters: int
    learning_parameters: int
    pairs: int
    steps_per_epoch: int
    steps: int
    measured_pairs: int  # largest micro-batch that was measured; larger ones are extrapolated
    peak_bytes: int
    step_s: float
    epoch_s: float
    training_s: float
    cache_bytes: int
    cache_s: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self, duration: Callable[[float], str]) -> list[tuple[str, str]]:
        """Name and value of each row, for people."""
        shown = [
            ("parameters", f"{self.parameters / 1e6:.1f} M, {self.learning_parameters / 1e6:.1f} M of them trained"),
            ("pairs per epoch", f"{self.pairs:,}"),
            ("optimiser steps", f"{self.steps:,} ({self.steps_per_epoch:,} per epoch)"),
            ("peak memory", f"{self.peak_bytes / 2**30:.1f} GiB, not counting Python and its libraries"),
            ("time per step", f"{self.step_s:.2f} s (measured with up to {self.measured_pairs} pairs at once)"),
            ("time per epoch", duration(self.epoch_s)),
            ("training time", duration(self.training_s)),
        ]
        if self.cache_bytes:
            shown.append(("backbone cache", f"{self.cache_bytes / 1e6:,.0f} MB, {duration(self.cache_s)} once"))
        return [*shown, *(("note", note) for note in self.notes)]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the data: from the prepared set, or as published."""

    train_images: int
    selection_images: int
    train: DataSplit | None
    note: str = ""


def forecast(request: TrainRequest, workspace: Workspace, progress: Progress, device: torch.device) -> TrainingForecast:
    """Build the recipe's model with random weights, measure a few steps on random pairs, and extrapolate.

    Needs neither the images of a public data set nor pretrained weights. Raises DataError if the size of the data set
    is unknown.
    """
    recipe, name = requested_recipe(request)
    sizes = _sizes(request, recipe, workspace)
    learner, notes = _blank_learner(recipe, sizes, device)
    pairs = min(recipe.train.batch_size, sizes.train_images)
    progress.say(f"measuring {MEASURED_STEPS} steps on {device}")
    images = sizes.train_images + sizes.selection_images
    cache_bytes, cache_s = use_cache(learner, images)
    captions = sizes.train.captions if sizes.train is not None else (_USUAL_CAPTION,)
    chunk_size = recipe.train.chunk_size
    at_once = min(pairs, chunk_size) if chunk_size else pairs
    measured = measure_sizes(learner, at_once, captions)
    cost = Cost.at(at_once, measured)
    if chunk_size:
        cost = in_chunks(learner, cost, pairs, captions)
    decode_s = 0.0 if cache_bytes else decode_seconds(sizes.train, recipe)
    workers, pair_s = recipe.data.workers, cost.elapsed_s / pairs
    loaded_s = max(pair_s, decode_s / workers) if workers else pair_s + decode_s
    validated_s = sizes.selection_images * (pair_s / 3 + decode_s) / recipe.train.validate_every_epochs
    epoch_s = sizes.train_images * loaded_s + validated_s
    steps = math.ceil(math.ceil(sizes.train_images / recipe.train.batch_size) / recipe.train.accumulate)
    parameters = list(learner.model.parameters())
    return TrainingForecast(
        recipe=name,
        device=str(device),
        parameters=sum(p.numel() for p in parameters),
        learning_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        pairs=sizes.train_images,
        steps_per_epoch=steps,
        steps=steps * recipe.train.epochs,
        measured_pairs=max(measured),
        peak_bytes=resident_bytes(learner) + cost.activation_bytes,
        step_s=cost.elapsed_s * recipe.train.accumulate,
        epoch_s=epoch_s,
        training_s=epoch_s * recipe.train.epochs + cache_s,
        cache_bytes=cache_bytes,
        cache_s=cache_s,
        notes=tuple(note for note in (sizes.note, *notes, _DISTILLED if recipe.distill.epochs else "") if note),
    )


def _sizes(request: TrainRequest, recipe: Recipe, workspace: Workspace) -> Sizes:
    try:
        train, selection = selection_splits(requested_data(request, recipe, workspace), recipe.data.selection)
    except DataError:
        published = PUBLISHED.get(request.data or recipe.data.dataset)
        if published is None:
            raise
        selected = published.val or int(published.train * recipe.data.selection.fraction)
        images = published.train if published.val else published.train - selected
        return Sizes(images, selected, None, f"{published.title} is not prepared: using its published counts")
    return Sizes(len(np.unique(train.caption_image)), len(selection), train)


def _blank_learner(recipe: Recipe, sizes: Sizes, device: torch.device) -> tuple[Learner, list[str]]:
    """A learner of the recipe's shape with random weights, and the assumptions that it needed."""
    cfg, notes, vocabulary = recipe.text_encoder, [], None
    if not reachable(cfg.weights):
        notes.append(f"{cfg.weights} is not on this machine: assuming a {cfg.size} with BERT's vocabulary")
        cfg, vocabulary = cfg.model_copy(update={"weights": "random"}), BERT_VOCABULARY
    captions = sizes.train.captions if sizes.train is not None else (_USUAL_CAPTION,)
    tokenizer = load_tokenizer(cfg, recipe.data.max_caption_tokens, captions)
    shape = bert_shape(cfg, vocabulary or tokenizer.vocab_size)
    model = build_model(recipe, shape.vocab_size, pretrained=False, text_shape=shape)
    origins = {parameter: _likely_origin(parameter, recipe) for parameter, _ in model.named_parameters()}
    return make_learner(recipe, tokenizer, device, use_kernels(model, device), origins), notes


def _likely_origin(name: str, recipe: Recipe) -> str:
    """A parameter's origin if the recipe's weights were imported, which decides its learning rate."""
    image, text = recipe.image_encoder, recipe.text_encoder
    from_backbone = (
        name.startswith("image_encoder.patch_embed.")
        and image.backbone != "none"
        and image.backbone_weights != "random"
    )
    own = image.weights != "random" or recipe.distill.epochs > 0
    if from_backbone or (name.startswith("image_encoder.") and own):
        return "imported_image"
    return "imported_text" if name.startswith("text_encoder.") and text.weights != "random" else "new"
