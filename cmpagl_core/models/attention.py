"""Scaled dot-product attention, written out on the CPU, fused elsewhere; the one place where it is chosen.

torch's fused attention for the CPU is several times slower than two matrix products at the sizes of this model
(windows of 49 tokens, captions of 20), above all in its backward pass; `benchmarks/bench_attention.py` measures it.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

BERT_ATTENTION = "cmpagl"
"""The name under which transformers' layers find `attend`."""


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(Q K^T / sqrt(d) + bias) V.

    query: [..., heads, N, d]. key, value: [..., heads, M, d]. bias: added to the scores, broadcast to
    [..., heads, N, M]. dropout: of the attention weights; pass 0 when evaluating. Returns [..., heads, N, d].
    """
    if query.device.type != "cpu":
        bias = None if bias is None else bias.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    weights = scores.softmax(dim=-1).to(value.dtype)
    if dropout > 0.0:
        weights = F.dropout(weights, dropout)
    attended: Tensor = weights @ value
    return attended


def _attend_for_bert(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """`attend` with the signature that transformers' layers expect; no layer reads the weights."""
    rate = dropout if module.training else 0.0
    return attend(query, key, value, attention_mask, rate).transpose(1, 2).contiguous(), None


AttentionInterface.register(BERT_ATTENTION, _attend_for_bert)
