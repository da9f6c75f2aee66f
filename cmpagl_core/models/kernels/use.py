"""Replaces a model's layers by the variants that are fastest on its device; the only place where that is chosen.

A variant is a subclass of its plain layer with the same parameters and names and another way to compute, so replacing
one means changing its class, and weights, optimisers and checkpoints are unaffected. `tests/models/test_kernels.py`
compares each with its plain layer, in values and gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn
from transformers import BertConfig

from cmpagl_core.models.backbone import Backbone
from cmpagl_core.models.bert import PLAIN_ATTENTION
from cmpagl_core.models.global_window import GeneratorStep
from cmpagl_core.models.gswin import GlobalBranch, GswinBranch, GswinStage, PatchMerging
from cmpagl_core.models.kernels.backbone import GroupedBackbone
from cmpagl_core.models.kernels.bert import WRITTEN_OUT
from cmpagl_core.models.kernels.global_window import FoldedGlobalBranch, RowsGeneratorStep
from cmpagl_core.models.kernels.gswin import FoldedBranch, FoldedPatchMerging, GroupedStage
from cmpagl_core.models.kernels.windows import PackedWindowAttention, ReorderedGeometry
from cmpagl_core.models.windows import WindowAttention, WindowGeometry

Layer = type[nn.Module]
Module = TypeVar("Module", bound=nn.Module)

_ANYWHERE: Mapping[Layer, Layer] = {
    WindowGeometry: ReorderedGeometry,
    WindowAttention: PackedWindowAttention,
    GlobalBranch: FoldedGlobalBranch,
    GswinBranch: FoldedBranch,
    GeneratorStep: RowsGeneratorStep,
}
KERNELS: Mapping[str, Mapping[Layer, Layer]] = {
    "cpu": {**_ANYWHERE, GswinStage: GroupedStage, PatchMerging: FoldedPatchMerging, Backbone: GroupedBackbone},
    "cuda": _ANYWHERE,
}
"""The fast variant of each plain layer, by the kind of device."""

_PLAIN = {fast: plain for table in KERNELS.values() for plain, fast in table.items()}


def use_kernels(model: Module, device: torch.device) -> Module:
    """Move a model to a device, with the fastest layers there; plain ones on devices without kernels."""
    chosen = KERNELS.get(device.type, {})
    for module in plain_layers(model).modules():
        module.__class__ = chosen.get(type(module), type(module))
        if isinstance(module, ReorderedGeometry):
            module.set_up()
        config = getattr(module, "config", None)
        if isinstance(config, BertConfig):
            config._attn_implementation = WRITTEN_OUT if device.type == "cpu" else PLAIN_ATTENTION
    if device.type == "cuda":
        # cuDNN SDPA re-plans for every new sequence length (about 0.1 s).
        torch.backends.cuda.enable_cudnn_sdp(False)
    return model.to(device)


def plain_layers(model: Module) -> Module:
    """The same model with the layers that it is defined by."""
    for module in model.modules():
        module.__class__ = _PLAIN.get(type(module), type(module))
    return model
