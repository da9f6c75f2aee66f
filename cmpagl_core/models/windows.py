"""Local window self-attention, regular and shifted, as in Swin (section 2); tokens are [B, H, W, C]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpagl_core.models.attention import attend_windows, join_heads, split_heads

_OUTSIDE = -100.0  # timm's mask value for pairs of tokens that only the shift brought into one window


class WindowAttention(nn.Module):
    """Multi-head self-attention within each window (W-MSA, or SW-MSA if shifted) [Swin, section 3.2].

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

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, H, W, C]. Returns the same shape."""
        windows = self.geometry.cut(x)  # [B * windows, N, C]
        query, key, value = (split_heads(part, self.num_heads) for part in self.qkv(windows).chunk(3, dim=-1))
        attended = join_heads(attend_windows(query, key, value, self.bias()))
        return self.geometry.uncut(self.proj_drop(self.proj(attended)))

    def bias(self) -> Tensor:
        """The additive bias of the scores: [1 or windows, heads, N, N]."""
        return window_bias(self.relative_position_bias_table, self.relative_position_index, self.geometry.mask)


class WindowGeometry(nn.Module):
    """Pads, rolls and partitions a square map of one size into windows, and reverses it.

    Padding comes first, as in Swin's detection code (timm rolls first): the padding then separates the map's opposite
    edges, so that they share a window only where the mask expects it.
    """

    mask: Tensor | None

    def __init__(self, map_size: int, window_size: int, shifted: bool) -> None:
        super().__init__()
        self.map_size = map_size
        self.window_size = fitted_window(window_size, map_size)
        self.shift = self.window_size // 2 if shifted and map_size > self.window_size else 0
        self.padded_size = -(-map_size // self.window_size) * self.window_size
        mask = shift_mask(self.padded_size, self.window_size, self.shift) if self.shift else None
        self.register_buffer("mask", mask, persistent=False)

    @property
    def pads(self) -> bool:
        """Whether the map is not a multiple of the window."""
        return self.padded_size != self.map_size

    def cut(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B * windows, w * w, C]; padding is zero, as in Swin."""
        return partition(self._rolled(self.pad(x), -self.shift), self.window_size)

    def uncut(self, windows: Tensor) -> Tensor:
        """[B * windows, w * w, C] to [B, H, W, C]."""
        x = join(windows, self.window_size, self.padded_size, self.padded_size)
        return self.crop(self._rolled(x, self.shift))

    def pad(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, P, P, C], P a multiple of the window."""
        padding = self.padded_size - self.map_size
        return F.pad(x, (0, 0, 0, padding, 0, padding)) if padding else x

    def crop(self, x: Tensor) -> Tensor:
        """Undo `pad`."""
        return x[:, : self.map_size, : self.map_size]

    def _rolled(self, x: Tensor, shift: int) -> Tensor:
        return torch.roll(x, shifts=(shift, shift), dims=(1, 2)) if shift else x


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


def shift_mask(padded_size: int, window_size: int, shift: int) -> Tensor:
    """The additive mask of shifted windows: [windows, w * w, w * w], 0 or -100.

    Shifting rolls the map, so windows at its far edges contain tokens from opposite sides; such pairs are masked, as in
    Swin.
    """
    band = torch.zeros(padded_size, dtype=torch.long)
    band[-window_size:-shift] = 1
    band[-shift:] = 2
    region = (3 * band[:, None] + band[None, :]).view(1, padded_size, padded_size, 1)
    windows = partition(region, window_size).squeeze(-1)  # [windows, w * w]
    different = windows[:, :, None] != windows[:, None, :]
    return different.float() * _OUTSIDE


def window_bias(table: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
    """Relative position bias plus the mask of shifted windows: [1 or windows, heads, N, N].

    table: [offsets, heads]. index: rows of the table for each pair of tokens, [N, N]. mask: [windows, N, N].
    """
    bias = table[index.flatten()].view(1, *index.shape, -1).permute(0, 3, 1, 2).contiguous()
    return bias if mask is None else bias + mask[:, None]


def pair_offsets(window_size: int) -> Tensor:
    """Row of the bias table for each pair of tokens of one window: [w * w, w * w] int64."""
    side = torch.arange(window_size)
    rows, columns = torch.meshgrid(side, side, indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    vertical = rows[:, None] - rows[None, :] + window_size - 1
    horizontal = columns[:, None] - columns[None, :] + window_size - 1
    return vertical * (2 * window_size - 1) + horizontal


def fitted_window(window_size: int, map_size: int) -> int:
    """The window's side on a square map: at most the map's."""
    return min(window_size, map_size)
