"""Scaled dot-product attention, over all tokens or inside windows; tokens are [..., N, heads * d]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(d) + bias) V.

    query: [B, heads, N, d]. key, value: [B, heads, M, d]. bias: broadcasts to [B, heads, N, M].
    Returns [B, heads, N, d].
    """
    bias = None if bias is None else bias.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def attend_windows(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """`attend` in all windows at once, without repeating the bias for each image.

    query, key, value: [B * windows, heads, N, d]. bias: [windows, heads, N, N], or [1, heads, N, N] for all windows.
    Returns [B * windows, heads, N, d].
    """
    query, key, value = (by_windows(part, len(bias)) for part in (query, key, value))
    return attend(query, key, value, bias.flatten(0, 1)).view(-1, *bias.shape[1:3], value.shape[-1])


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, N, heads * d] to [B, heads, N, d]."""
    return x.view(*x.shape[:-1], num_heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """[B, heads, N, d] to [B, N, heads * d]."""
    return x.transpose(1, 2).flatten(2)


def by_windows(x: Tensor, windows: int) -> Tensor:
    """[B * windows, heads, N, d] to [B, windows * heads, N, d], to which one bias for all images broadcasts."""
    return x.reshape(-1, windows * x.shape[1], *x.shape[2:])
