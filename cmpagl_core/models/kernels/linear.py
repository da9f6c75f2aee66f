"""The fastest linear layers on a CPU in bf16 (ours); the only place where that is chosen."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_ROWS_A_CHANNEL = 8  # from this many rows on, a convolution is the faster product
_ROWS_AN_OUTPUT = 8  # from this many rows on, it pays to fold a norm into the weights


def linear(layer: nn.Linear, x: Tensor, scale: Tensor | None = None) -> Tensor:
    """layer(x) * scale, x: [..., C], scale: per output channel; it is applied to the weights, which are fewer."""
    weight: Tensor = layer.weight
    bias: Tensor | None = layer.bias
    if scale is not None:
        weight, bias = weight * scale[:, None], None if bias is None else bias * scale
    return project(x, weight, bias)


def norm_linear(norm: nn.LayerNorm | None, layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(norm(x)), x: [..., C]; without a norm, layer(x).

    With many rows, the norm's weight and bias are folded into the next layer, and their gradients follow from that
    layer's: computed by the norm, they take two thirds of its backward pass.
    """
    if norm is None or not _pays_to_fold(x, layer):
        return linear(layer, x if norm is None else norm(x))
    return project(standardised(norm, x), *behind_norm(norm, layer))


def standardised(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """A norm's output without its weight and bias: [..., C]."""
    return F.layer_norm(x, norm.normalized_shape, eps=norm.eps)


def behind_norm(norm: nn.LayerNorm, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight [D, C] and bias [D] of a layer with the norm's weight and bias folded in, for `standardised` input."""
    shift = (layer.weight * norm.bias).sum(dim=1)
    return layer.weight * norm.weight, shift if layer.bias is None else layer.bias + shift


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b: [..., C] to [..., D], weight: [D, C], bias: [D].

    torch's bf16 linear first writes the bias to every row of the output and then adds the product; a 1 x 1 convolution
    adds the bias while computing the rows, which is faster for many rows. Its backward pass takes up to twice the time
    of two matrix products, so those are used instead.
    """
    channels = x.shape[-1]
    if x.device.type != "cpu" or not _in_bf16() or x.numel() < _ROWS_A_CHANNEL * channels**2:
        return F.linear(x, weight, bias)
    rounded = None if bias is None else bias.bfloat16()
    rows: Tensor = _ManyRows.apply(x.reshape(-1, channels).bfloat16(), weight.bfloat16(), rounded)
    return rows.view(*x.shape[:-1], -1)


class _ManyRows(torch.autograd.Function):
    """x W^T + b by a convolution, differentiated by matrix products; all in bf16, x: [rows, C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        image = x.view(1, -1, 1, x.shape[1]).permute(0, 3, 1, 2)  # [1, C, rows, 1], channels last in memory
        out = F.conv2d(image, weight[:, :, None, None], bias)
        return out.permute(0, 2, 3, 1).view(len(x), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            gradient @ weight if of_x else None,
            gradient.t() @ x if of_weight else None,
            gradient.sum(dim=0) if of_bias else None,
        )


def _pays_to_fold(x: Tensor, layer: nn.Linear) -> bool:
    rows = x.numel() // layer.in_features
    return torch.is_grad_enabled() and x.device.type == "cpu" and rows >= _ROWS_AN_OUTPUT * layer.out_features


def _in_bf16() -> bool:
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
