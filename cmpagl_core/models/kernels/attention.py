"""Explicit scaled dot-product attention with its own backward pass, for this model's sizes on a CPU.

torch's fused attention for the CPU is several times slower than two matrix products at these sizes (windows of 49
tokens, captions of 20), especially in its backward pass; `benchmarks/bench_attention.py` measures it. On CUDA it is
used for windows too, since fused attention with a bias of 49 columns is no faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(Q K^T / sqrt(d) + bias) V.

    query: [..., heads, N, d]. key, value: [..., heads, M, d]. bias: added to the scores, broadcast to
    [..., heads, N, M]. dropout: of the attention weights; pass 0 when evaluating. Returns [..., heads, N, d].
    """
    if query.device.type != "cpu":
        bias = None if bias is None else bias.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if dropout > 0.0:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        weights = (scores if bias is None else scores + bias.to(scores.dtype)).softmax(dim=-1)
        return F.dropout(weights, dropout) @ value
    attended: Tensor = _Attention.apply(query, key, value, bias)
    return attended


def attend_packed(query_key_value: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    """Self-attention of many short sequences, from the output of one projection to the input of the next.

    query_key_value: [B, N, 3 * heads * d]. bias: [G, heads, N, N], applied to the sequences in rotation.
    Returns [B, N, heads * d].
    """
    out: Tensor = _PackedAttention.apply(query_key_value, bias, num_heads)
    return out


def attend_shared(x: Tensor, keys: Tensor, bias: Tensor, values: Tensor, num_heads: int) -> Tensor:
    """Attention of many tokens over few shared keys, with the projections folded into keys and values (ours).

    x: [B, N, C]. keys, values: [B, heads * M, C], M rows per head. bias: [B, heads * M, 1], added to the scores.
    Returns the sum over heads of softmax(x keys^T + bias) values: [B, N, C].
    """
    out: Tensor = _SharedAttention.apply(x.to(keys.dtype), keys, bias, values, num_heads)
    return out


def _split(packed: Tensor, num_heads: int) -> Tensor:
    """[B, N, parts * heads * d] with three parts to [3, B, heads, N, d], contiguous: one copy."""
    count, tokens, width = packed.shape
    parts = packed.view(count, tokens, 3, num_heads, width // (3 * num_heads))
    return parts.permute(2, 0, 3, 1, 4).contiguous()


def _joined(heads: Tensor) -> Tensor:
    """[B, heads, N, d] to [B, N, heads * d]."""
    return heads.transpose(1, 2).flatten(2)


def _product(left: Tensor, right: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """scale * left @ right + bias, without separate passes for scaling and adding.

    left: [..., N, d]. right: [..., d, M]; leading axes broadcast. bias: broadcasts to the result, [..., N, M].
    """
    lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    out = left.new_empty(*lead, left.shape[-2], right.shape[-1])
    if bias is not None:
        out.copy_(bias)
    flat = out.flatten(0, -3)
    flat_left, flat_right = (part.expand(*lead, -1, -1).flatten(0, -3) for part in (left, right))
    torch.baddbmm(flat, flat_left, flat_right, beta=0 if bias is None else 1, alpha=scale, out=flat)
    return out


def _weights(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(d) + bias); the bias broadcasts to the scores."""
    scores = _product(query, key.transpose(-1, -2), query.shape[-1] ** -0.5, bias)
    if scores.dtype in (torch.bfloat16, torch.float16):
        # torch's softmax of rows as short as a window is faster in float32, and no less exact
        return scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)
    return scores.softmax(dim=-1)


def _score_gradient(gradient: Tensor, weights: Tensor, value: Tensor) -> Tensor:
    """From the gradient of the attention weights to that of the scores: [..., N, M]."""
    out: Tensor = torch.ops.aten._softmax_backward_data(gradient @ value.transpose(-1, -2), weights, -1, weights.dtype)
    return out


class _Attention(torch.autograd.Function):
    """`attend` without dropout; saves only the weights for the backward pass, which does not copy them."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        weights = _weights(query, key, bias)
        ctx.save_for_backward(query, key, value, weights)
        ctx.bias = None if bias is None else (bias.shape, bias.dtype)
        attended: Tensor = weights @ value
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        scale = query.shape[-1] ** -0.5
        of_value = weights.transpose(-1, -2) @ gradient
        of_scores = _score_gradient(gradient, weights, value)
        of_bias = None
        if ctx.needs_input_grad[3]:
            shape, dtype = ctx.bias
            of_bias = of_scores.sum_to_size(shape).to(dtype)
        of_query = _product(of_scores, key, scale).sum_to_size(query.shape)
        of_key = _product(of_scores.transpose(-1, -2), query, scale).sum_to_size(key.shape)
        return of_query, of_key, of_value.sum_to_size(value.shape), of_bias


class _PackedAttention(torch.autograd.Function):
    """`attend_packed`: heads, and their gradients, are split and joined by one copy each."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, bias: Tensor, num_heads: int) -> Tensor:
        parts = _split(packed, num_heads)
        query, key, value = parts
        count, _, tokens, _ = query.shape
        turns = (count // len(bias), len(bias) * num_heads)
        weights = _weights(query.view(*turns, tokens, -1), key.view(*turns, tokens, -1), bias.flatten(0, 1))
        weights = weights.view(count, num_heads, tokens, tokens)
        ctx.save_for_backward(parts, weights)
        ctx.bias = (bias.shape, bias.dtype)
        return _joined(weights @ value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        parts, weights = ctx.saved_tensors
        query, key, value = (part.flatten(0, 1) for part in parts)  # each [B * heads, N, d]
        _, count, heads, tokens, depth = parts.shape
        gradient = gradient.view(count, tokens, heads, depth).transpose(1, 2).flatten(0, 1)
        flat = weights.flatten(0, 1)
        of_scores = _score_gradient(gradient, flat, value)
        of_parts = torch.empty_like(parts)
        of_query, of_key, of_value = (part.flatten(0, 1) for part in of_parts)
        torch.baddbmm(of_query, of_scores, key, beta=0, alpha=depth**-0.5, out=of_query)
        torch.baddbmm(of_key, of_scores.transpose(1, 2), query, beta=0, alpha=depth**-0.5, out=of_key)
        torch.bmm(flat.transpose(1, 2), gradient, out=of_value)
        of_bias = None
        if ctx.needs_input_grad[1]:
            shape, dtype = ctx.bias
            of_bias = of_scores.view(-1, *shape).sum(dim=0).to(dtype)
        packed = of_parts.permute(1, 3, 0, 2, 4).reshape(count, tokens, 3 * heads * depth)
        return packed, of_bias, None


class _SharedAttention(torch.autograd.Function):
    """`attend_shared`; scores are stored as [B, heads, M, N], since a softmax over a middle axis is faster."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keys: Tensor, bias: Tensor, values: Tensor, num_heads: int) -> Tensor:
        scores = torch.baddbmm(bias, keys, x.transpose(1, 2))
        weights = scores.view(len(x), num_heads, -1, x.shape[1]).softmax(dim=2)
        ctx.save_for_backward(x, keys, values, weights)
        attended: Tensor = weights.flatten(1, 2).transpose(1, 2) @ values
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, keys, values, weights = ctx.saved_tensors
        of_weights = (values @ gradient.transpose(1, 2)).view_as(weights)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, 2, weights.dtype).flatten(1, 2)
        of_values = weights.flatten(1, 2) @ gradient
        of_x = of_scores.transpose(1, 2) @ keys
        return of_x, of_scores @ x, of_scores.sum(dim=2, keepdim=True), of_values, None
