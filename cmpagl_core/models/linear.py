"""Linear layers as the CPU computes them fastest in bf16 (ours); the one place where that is chosen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW_CHANNELS = 192
_ROWS_A_CHANNEL = 8


def linear(layer: nn.Linear, x: Tensor, scale: Tensor | None = None) -> Tensor:
    """layer(x) * scale, x: [..., C], scale: of each output channel; it is applied to the weights, which are fewer.

    torch's bf16 linear first writes its bias into every row of the output, and then adds the product to it; a 1 x 1
    convolution is the same product with the bias added as rows are made, worth it where rows are many (autocast keeps
    no rounded copy of its weights). Its backward pass is the faster one for few channels, the slower one for many.
    """
    weight: Tensor = layer.weight
    bias: Tensor | None = layer.bias
    if scale is not None:
        weight, bias = weight * scale[:, None], None if bias is None else bias * scale
    if x.device.type != "cpu" or not _in_bf16() or not _many_rows(layer, x):
        return F.linear(x, weight, bias)
    rows = x.reshape(1, -1, 1, layer.in_features).permute(0, 3, 1, 2)  # [1, C, rows, 1], channels last in memory
    out = F.conv2d(rows, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).view(*x.shape[:-1], layer.out_features)


def _in_bf16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


def _many_rows(layer: nn.Linear, x: Tensor) -> bool:
    if torch.is_grad_enabled() and layer.in_features > _FEW_CHANNELS:
        return False
    return x.numel() >= _ROWS_A_CHANNEL * layer.in_features**2
