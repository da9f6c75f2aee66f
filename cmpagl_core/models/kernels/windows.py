"""Window attention with fewer copies: one to reorder tokens, one to split heads, one to join them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cmpagl_core.models.kernels.attention import attend_packed
from cmpagl_core.models.kernels.linear import linear, norm_linear
from cmpagl_core.models.windows import WindowAttention, WindowGeometry


class ReorderedGeometry(WindowGeometry):
    """`WindowGeometry` that rolls and partitions a shifted map with one index of its tokens."""

    order: Tensor | None
    inverse: Tensor | None

    def set_up(self) -> None:
        """Build the index: the padded map's token at each position of the windows, [P * P], and its inverse."""
        order = None
        if self.shift:
            places = torch.arange(self.padded_size**2).view(1, self.padded_size, self.padded_size, 1)
            order = WindowGeometry.cut(self._unpadded(), places).flatten()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", None if order is None else order.argsort(), persistent=False)

    def cut(self, x: Tensor) -> Tensor:
        if self.order is None:
            return super().cut(x)
        moved: Tensor = _Reorder.apply(self.pad(x).flatten(1, 2), self.order, self.inverse)
        return moved.view(-1, self.window_size**2, x.shape[-1])

    def uncut(self, windows: Tensor) -> Tensor:
        if self.order is None:
            return super().uncut(windows)
        size, channels = self.padded_size, windows.shape[-1]
        moved: Tensor = _Reorder.apply(windows.reshape(-1, size * size, channels), self.inverse, self.order)
        return self.crop(moved.view(-1, size, size, channels))

    def _unpadded(self) -> WindowGeometry:
        """The plain geometry of a map of this one's padded size."""
        return WindowGeometry(self.padded_size, self.window_size, shifted=bool(self.shift))


class _Reorder(torch.autograd.Function):
    """Reorder tokens [B, N, C] in one copy; the gradient uses the inverse order, also in one copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(1, inverse), None, None


class PackedWindowAttention(WindowAttention):
    """`WindowAttention` whose heads stay packed from one projection to the next."""

    def forward(self, x: Tensor) -> Tensor:
        return window_attention(self, x, None, None)


def window_attention(layer: WindowAttention, x: Tensor, norm: nn.LayerNorm | None, scale: Tensor | None) -> Tensor:
    """layer(norm(x)) * scale, the norm folded into the first projection where that pays, the scale into the last.

    x: [B, H, W, C]. norm, scale: None where there is none; scale: [C]. Returns x's shape.
    """
    if norm is not None and layer.geometry.pads:
        x, norm = norm(x), None  # padding stays zero
    windows = layer.geometry.cut(x)  # [B * windows, N, C]
    attended = attend_packed(norm_linear(norm, layer.qkv, windows), layer.bias(), layer.num_heads)
    return layer.geometry.uncut(layer.proj_drop(linear(layer.proj, attended, scale)))
