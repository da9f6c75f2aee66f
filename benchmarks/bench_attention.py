"""Attention as the model computes it on the CPU, against torch's fused attention: forward and backward.

In bf16 where the processor has instructions for it, in fp32 elsewhere.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from _measure import CPU, DTYPES, PRECISION, median_s, report
from torch import Tensor

from cmpagl_core.device import autocast
from cmpagl_core.models.kernels.attention import attend

DTYPE = DTYPES[PRECISION]

SIZES = {  # batch, heads, queries, keys, depth
    "windows": (128, 12, 49, 49, 32),
    "captions": (384, 12, 20, 20, 32),
    "captions to image": (384, 12, 20, 50, 32),
}


def step(ours: bool, parts: list[Tensor], bias: Tensor) -> None:
    """One forward and backward pass."""
    with autocast(CPU, "bf16"):
        out = attend(*parts, bias) if ours else F.scaled_dot_product_attention(*parts, attn_mask=bias)
    out.sum().backward()


def main() -> int:
    """Print one line per size, after checking that both give the same."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    met = []
    for name, (batch, heads, queries, keys, depth) in SIZES.items():
        shapes = [(batch, heads, count, depth) for count in (queries, keys, keys)]
        parts = [torch.randn(shape, dtype=DTYPE).requires_grad_() for shape in shapes]
        bias = torch.zeros(batch, 1, 1, keys, dtype=DTYPE)
        expected = F.scaled_dot_product_attention(*parts, attn_mask=bias)
        torch.testing.assert_close(attend(*parts, bias), expected, atol=2e-2, rtol=2e-2)
        ours = median_s(lambda parts=parts, bias=bias: step(True, parts, bias))
        fused = median_s(lambda parts=parts, bias=bias: step(False, parts, bias))
        title = f"attention, {name}, forward and backward"
        met.append(report(title, ours, "s", 1.0, "torch fused attention", fused))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
