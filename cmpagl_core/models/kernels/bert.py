"""Attention written out for transformers' BERT layers, by the name under which they find it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface

from cmpagl_core.models.kernels.attention import attend

WRITTEN_OUT = "cmpagl"
"""The name; a layer asks its configuration for it in every forward pass."""


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


AttentionInterface.register(WRITTEN_OUT, _attend_for_bert)
