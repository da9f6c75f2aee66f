"""Local window self-attention, regular and shifted, as in Swin (section 2); tokens are [B, H, W, C]."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpagl_core.models.attention import attend, attend_packed
from cmpagl_core.models.linear import linear, norm_linear

_OUTSIDE = -100.0  # what timm adds for a pair of tokens that shifting brought into one window


def fitted_window(window_size: int, map_size: int) -> int:
    """The window's side on a square map: a map smaller than the window shrinks it."""
    return min(window_size, map_size)


def partition(x: Tensor, window_size: int) -> Tensor:
    """Cut [B, H, W, C] into windows [B * windows, w * w, C]; H and W are multiples of w."""
    batch, height, width, channels = x.shape
    w = window_size
    x = x.view(batch, height // w, w, width // w, w, channels)
    return x.transpose(2, 3).reshape(-1, w * w, channels)


def join(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Undo `partition`: [B * windows, w * w, C] to [B, H, W, C]."""
    w, channels = window_size, windows.shape[-1]
    x = windows.view(-1, height // w, width // w, w, w, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def pair_offsets(window_size: int) -> Tensor:
    """Row of the bias table for each pair of tokens of one window: [w * w, w * w] int64."""
    side = torch.arange(window_size)
    rows, columns = torch.meshgrid(side, side, indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    vertical = rows[:, None] - rows[None, :] + window_size - 1
    horizontal = columns[:, None] - columns[None, :] + window_size - 1
    return vertical * (2 * window_size - 1) + horizontal


def shift_mask(padded_size: int, window_size: int, shift: int) -> Tensor:
    """What is added to the attention of shifted windows: [windows, w * w, w * w], 0 or -100.

    Shifting rolls the map, so that windows at its far edges hold tokens from opposite sides; such pairs are
    masked, as in Swin.
    """
    band = torch.zeros(padded_size, dtype=torch.long)
    band[-window_size:-shift] = 1
    band[-shift:] = 2
    region = (3 * band[:, None] + band[None, :]).view(1, padded_size, padded_size, 1)
    windows = partition(region, window_size).squeeze(-1)  # [windows, w * w]
    different = windows[:, :, None] != windows[:, None, :]
    return different.float() * _OUTSIDE


class WindowGeometry(nn.Module):
    """Pads, rolls and cuts a square map of one size into windows, and puts them together again.

    Padding comes first, as in Swin's detection code (timm rolls first): what it adds lies between the map's opposite
    edges, so that they meet in a window only as the mask foresees.
    """

    mask: Tensor | None
    order: Tensor | None
    inverse: Tensor | None

    def __init__(self, map_size: int, window_size: int, shifted: bool) -> None:
        super().__init__()
        self.map_size = map_size
        self.window_size = fitted_window(window_size, map_size)
        self.shift = self.window_size // 2 if shifted and map_size > self.window_size else 0
        self.padded_size = -(-map_size // self.window_size) * self.window_size
        mask = shift_mask(self.padded_size, self.window_size, self.shift) if self.shift else None
        self.register_buffer("mask", mask, persistent=False)
        order = self._rolled_and_cut() if self.shift else None
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", None if order is None else order.argsort(), persistent=False)

    @property
    def pads(self) -> bool:
        """Whether the map is no multiple of the window."""
        return self.padded_size != self.map_size

    def cut(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B * windows, w * w, C]; what pads the map is zero, as in Swin."""
        if self.pads:
            padding = self.padded_size - self.map_size
            x = F.pad(x, (0, 0, 0, padding, 0, padding))
        if self.order is None:
            return partition(x, self.window_size)
        batch, _, _, channels = x.shape
        moved: Tensor = _Reorder.apply(x.reshape(batch, -1, channels), self.order, self.inverse)
        return moved.view(-1, self.window_size**2, channels)

    def uncut(self, windows: Tensor) -> Tensor:
        """[B * windows, w * w, C] to [B, H, W, C]."""
        size, channels = self.padded_size, windows.shape[-1]
        if self.order is None:
            x = join(windows, self.window_size, size, size)
        else:
            moved: Tensor = _Reorder.apply(windows.reshape(-1, size * size, channels), self.inverse, self.order)
            x = moved.view(-1, size, size, channels)
        return x[:, : self.map_size, : self.map_size] if self.pads else x

    def _rolled_and_cut(self) -> Tensor:
        """Which token of the padded map, in reading order, comes to each place of the windows: [P * P]."""
        places = torch.arange(self.padded_size**2).view(1, self.padded_size, self.padded_size, 1)
        rolled = torch.roll(places, shifts=(-self.shift, -self.shift), dims=(1, 2))
        return partition(rolled, self.window_size).flatten()


class _Reorder(torch.autograd.Function):
    """Tokens [B, N, C] in another order, in one copy; the gradient goes back by the inverse order in one copy too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradient.index_select(1, inverse), None, None


class WindowAttention(nn.Module):
    """Multi-head self-attention inside each window (W-MSA, and SW-MSA when shifted) [Swin, section 3.2].

    Parameter names are timm's, so that published Swin weights map one to one.
    """

    relative_position_index: Tensor

    def __init__(self, width: int, num_heads: int, geometry: WindowGeometry, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.geometry = geometry
        offsets = (2 * geometry.window_size - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.zeros(offsets, num_heads))
        self.register_buffer("relative_position_index", pair_offsets(geometry.window_size), persistent=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, norm: nn.LayerNorm | None = None, scale: Tensor | None = None) -> Tensor:
        """x: [B, H, W, C]. norm: of its tokens, or None. scale: [C], of what comes out, or None. Returns x's shape."""
        if norm is not None and self.geometry.pads:
            x, norm = norm(x), None  # what pads the map stays zero
        windows = self.geometry.cut(x)  # [B * windows, N, C]
        bias, mask = self.bias()[None], self.geometry.mask
        bias = bias if mask is None else bias + mask[:, None]  # [1 or windows, heads, N, N], for all pictures
        attended = attend_packed(norm_linear(norm, self.qkv, windows), bias, self.num_heads)
        return self.geometry.uncut(self.proj_drop(linear(self.proj, attended, scale)))

    def bias(self) -> Tensor:
        """The relative position bias: [heads, N, N]."""
        return gather_bias(self.relative_position_bias_table, self.relative_position_index)


def gather_bias(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a bias table [offsets, heads] laid out for each pair of tokens: [heads, N, N]."""
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).contiguous()


def attend_windows(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """Attention in all windows at once.

    query, key, value: [B * windows, heads, N, d]. bias: [heads, N, N]. mask: [windows, N, N] or None.
    Returns [B * windows, N, heads * d].
    """
    count, heads, tokens, depth = query.shape
    if mask is None:
        attended = attend(query, key, value, bias[None])
    else:
        # One mask for the windows of a picture, broadcast over the batch: never expanded per picture.
        windows = mask.shape[0]
        merged = bias[None] + mask[:, None]  # [windows, heads, N, N]
        query, key, value = (part.reshape(-1, windows * heads, tokens, depth) for part in (query, key, value))
        merged = merged.view(1, windows * heads, tokens, tokens)
        attended = attend(query, key, value, merged)
        attended = attended.view(count, heads, tokens, depth)
    return attended.transpose(1, 2).reshape(count, tokens, heads * depth)
