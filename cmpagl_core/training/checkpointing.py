"""Activation checkpointing: a block keeps its input and is computed again in the backward pass [Chen et al. 2016]."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cmpagl_core.models.cmpagl import CmpaglModel
from cmpagl_core.models.gswin import GswinBranch


def checkpoint_activations(model: CmpaglModel) -> None:
    """Let each branch of Gswin and each BERT layer compute its activations twice; weights and names do not change."""
    for owner, method in _blocks(model):
        setattr(owner, method, _recomputed(getattr(owner, method)))


def _blocks(model: CmpaglModel) -> Iterator[tuple[nn.Module, str]]:
    """The methods that a pass calls block by block."""
    for module in model.image_encoder.modules():
        if isinstance(module, GswinBranch):
            yield module, "forward"
    for layer in model.text_encoder.layers:
        yield layer, "forward"
    if model.fusion_encoder is not None:
        yield model.fusion_encoder, "layer"


def _recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if not torch.is_grad_enabled():
            return function(*arguments)
        return checkpoint(function, *arguments, use_reentrant=False)

    return call
