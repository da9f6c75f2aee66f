"""All state that training changes, in one place, as tensors that can be saved and restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cmpagl_core.device import usable_precision
from cmpagl_core.encoders.backbone_cache import BackboneCache
from cmpagl_core.encoders.cached import encode_flat_maps
from cmpagl_core.models.backbone import Backbone
from cmpagl_core.models.cmpagl import CmpaglModel, ImageEncoding
from cmpagl_core.models.tokenizer import CaptionTokenizer
from cmpagl_core.ranks import ALONE, Ranks
from cmpagl_core.recipe import Recipe
from cmpagl_core.training.checkpointing import checkpoint_activations
from cmpagl_core.training.optim import RunningAverage, make_optimizer, optimizer_tensors, restore_optimizer

Tensors = dict[str, Tensor]


@dataclass
class Learner:
    """The model with its optimiser, gradient scaler, moving average, best weights and cache."""

    recipe: Recipe
    device: torch.device
    tokenizer: CaptionTokenizer
    model: CmpaglModel
    origins: Mapping[str, str]
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    average: RunningAverage | None
    cache: BackboneCache | None = None
    best: Tensors | None = None
    ranks: Ranks = ALONE
    wrapped: object = None  # what `parallel` makes of the objective for several processes

    @property
    def backbone(self) -> Backbone | None:
        """The timm backbone; None with Swin's patch embedding."""
        backbone = self.model.image_encoder.patch_embed
        return backbone if isinstance(backbone, Backbone) else None

    @property
    def losses_meet(self) -> bool:
        """Whether all losses act through the image tokens: false with `backbone_skip`."""
        return self.model.backbone_skip is None

    def encode(self, images: Tensor) -> ImageEncoding:
        """images: pixel_values [B, 3, S, S], or a frozen backbone's cached maps, flattened to [B, values]."""
        if images.dim() == 2 and self.cache is not None:
            return encode_flat_maps(self.model, self.cache, images)
        return self.model.encode_images(images)

    def freeze_backbone_until_due(self, epoch: int) -> None:
        """Freeze a trainable backbone before `backbone_unfreeze_epoch`, unfreeze it from then on."""
        cfg = self.recipe.image_encoder
        if cfg.backbone_trainable and self.recipe.optim.image_lr_scale > 0:
            self.model.image_encoder.set_backbone_trainable(epoch >= cfg.backbone_unfreeze_epoch)

    def keep_best(self) -> None:
        """Save the current weights (averaged, if an average is kept) as the best."""
        weights = self.model.state_dict() | (self.average.tensors if self.average is not None else {})
        self.best = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}

    def tensors(self) -> Tensors:
        """The complete state, for resuming."""
        kept: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
            "average": self.average.tensors if self.average is not None else {},
            "best": self.best or {},
        }
        return {f"{part}/{name}": value for part, values in kept.items() for name, value in values.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned. Raises RuntimeError or KeyError for another model's state."""
        parts: dict[str, Tensors] = {"model": {}, "optimizer": {}, "average": {}, "best": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = value
        self.model.load_state_dict(parts["model"])
        restore_optimizer(self.model, self.optimizer, parts["optimizer"])
        if self.average is not None:
            self.average.tensors = {name: value.to(self.device) for name, value in parts["average"].items()}
        self.best = parts["best"] or None


def make_learner(
    recipe: Recipe,
    tokenizer: CaptionTokenizer,
    device: torch.device,
    model: CmpaglModel,
    origins: Mapping[str, str],
    ranks: Ranks = ALONE,
) -> Learner:
    """A learner for a model on `device`; `origins` decides each parameter's learning rate (`make_optimizer`)."""
    if recipe.train.checkpoint_activations:
        checkpoint_activations(model)
    scaled = usable_precision(device, recipe.train.precision) == "fp16" and device.type != "mps"
    learner = Learner(
        recipe=recipe,
        device=device,
        tokenizer=tokenizer,
        model=model,
        origins=origins,
        optimizer=make_optimizer(model, origins, recipe.optim),
        scaler=torch.amp.GradScaler(device.type, enabled=scaled),
        average=None,
        ranks=ranks,
    )
    learner.freeze_backbone_until_due(0)
    if recipe.train.ema_decay > 0:
        learner.average = RunningAverage(model, recipe.train.ema_decay)
    return learner


def gates_by_stage(model: CmpaglModel) -> dict[str, float]:
    """Mean size of the global window's gates, by stage; empty without a global window."""
    sizes: dict[str, list[float]] = {}
    for name, parameter in model.image_encoder.layers.named_parameters():
        if name.endswith(".global_branch.gate"):
            stage = f"stage {int(name.partition('.')[0]) + 1}"
            sizes.setdefault(stage, []).append(float(parameter.detach().abs().mean()))
    return {stage: sum(found) / len(found) for stage, found in sizes.items()}


def caches_until(recipe: Recipe, views: Sequence[int]) -> int:
    """The epoch before which the backbone's maps are cached: every epoch, none, or those before it is unfrozen.

    A backbone that is unfrozen later is cached only if it stays frozen for more epochs than the cache has views.
    """
    cfg = recipe.image_encoder
    if cfg.backbone == "none" or recipe.data.crop_scale_min < 1.0:
        return 0
    if not cfg.backbone_trainable or recipe.optim.image_lr_scale == 0:
        return recipe.train.epochs
    return cfg.backbone_unfreeze_epoch if cfg.backbone_unfreeze_epoch > len(views) else 0
