"""Explicit attention for transformers' BERT layers, registered under a name."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface

from cmpagl_core.models.kernels.attention import attend

WRITTEN_OUT = "cmpagl"
"""The name; a layer looks it up in its configuration in every forward pass."""


def _attend_for_bert(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """`attend` with the signature that transformers' layers expect; none of them uses the weights."""
    rate = dropout if module.training else 0.0
    return attend(query, key, value, attention_mask, rate).transpose(1, 2).contiguous(), None


AttentionInterface.register(WRITTEN_OUT, _attend_for_bert)
