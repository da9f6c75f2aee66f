"""AdamW with learning rates by the weights' origin, warm-up and cosine decay, and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cmpagl_core.recipe import OptimPart

_NO_DECAY_WORDS = ("relative_position_bias", "logit_scale", "gate")


def make_optimizer(model: nn.Module, origins: Mapping[str, str], cfg: OptimPart) -> torch.optim.AdamW:
    """AdamW over the parameters that require gradients; a group shares its learning rate and weight decay.

    origins: parameter name -> imported_image | imported_text | new. Imported weights learn at `lr` times their
    encoder's scale; a scale of 0 freezes them here. Every group stores its `peak_lr` and `name`.
    """
    scales = {"new": 1.0, "imported_image": cfg.image_lr_scale, "imported_text": cfg.text_lr_scale}
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        origin = origins[name]
        if scales[origin] == 0.0:
            parameter.requires_grad_(False)
        elif parameter.requires_grad:
            groups.setdefault((origin, decays(name, parameter)), []).append(parameter)
    settings = [
        {
            "name": origin + ("" if decay else " without decay"),
            "params": parameters,
            "peak_lr": cfg.lr * scales[origin],
            "weight_decay": cfg.weight_decay if decay else 0.0,
        }
        for (origin, decay), parameters in groups.items()
    ]
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(settings, lr=0.0, betas=(cfg.beta1, cfg.beta2), fused=fused)


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices, but not to norms, biases, gates, scales and bias tables."""
    return parameter.dim() > 1 and not any(word in name for word in _NO_DECAY_WORDS)


def schedule(step: int, total: int, warmup_fraction: float) -> float:
    """Learning rate at optimiser steps 0 to total - 1 as a share of its peak: linear warm-up, then cosine decay."""
    warmup = math.ceil(warmup_fraction * total)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group's learning rate to `share` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state as `moment/parameter name` -> tensor, for the parameters that have one."""
    return {
        f"{moment}/{name}": value
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` returned. Raises KeyError for an unknown parameter."""
    parameters = dict(model.named_parameters())
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        moment, _, name = key.partition("/")
        device = parameters[name].device
        states.setdefault(name, {})[moment] = value.to(device) if value.dim() or device.type == "cuda" else value
    for name, state in states.items():
        optimizer.state[parameters[name]] = state


class RunningAverage:
    """Exponential moving average (EMA) of the trainable parameters."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.tensors: dict[str, Tensor] = {name: p.detach().clone() for name, p in _learning(model)}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Add the weights after optimiser step `step` (from 0); early steps have more weight."""
        share = 1.0 - min(self._decay, (1.0 + step) / (10.0 + step))
        for name, parameter in _learning(model):
            average = self.tensors.get(name)
            if average is None:  # unfrozen since
                self.tensors[name] = parameter.detach().clone()
            else:
                average.lerp_(parameter.detach(), share)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Gives the model its averaged weights inside the block, and its own back afterwards."""
        own = {name: p.detach().clone() for name, p in _learning(model) if name in self.tensors}
        _copy(model, self.tensors)
        try:
            yield
        finally:
            _copy(model, own)


def _learning(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


@torch.no_grad()
def _copy(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    parameters: dict[str, Any] = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)
