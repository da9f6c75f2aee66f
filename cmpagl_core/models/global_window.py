"""The global window: made once per stage from its map, and the attention between it and local tokens (section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpagl_core.models.attention import attend, attend_shared
from cmpagl_core.models.linear import behind_norm, linear, norm_linear, project, standardised
from cmpagl_core.models.windows import (
    WindowGeometry,
    attend_windows,
    fitted_window,
    gather_bias,
    pair_offsets,
)

_SQUEEZE = 4  # channels are squeezed by this factor before they are excited
_TOKENS_A_CHANNEL = 2  # from so many on projections are folded into the global window's keys


def _many_tokens(x: Tensor) -> bool:
    """Whether a map [B, H, W, C] has so many tokens that it pays to make keys of its own width for each picture."""
    return x.shape[1] * x.shape[2] >= _TOKENS_A_CHANNEL * x.shape[3]


def halvings(map_size: int, window_size: int) -> int:
    """How often a map may be halved (rounding up) and still hold a window."""
    count = 0
    while -(-map_size // 2) >= window_size and map_size > window_size:
        map_size, count = -(-map_size // 2), count + 1
    return count


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channel means [Hu et al. 2018]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = max(1, width // _SQUEEZE)
        self.squeeze = nn.Linear(width, squeezed)
        self.excite = nn.Linear(squeezed, width)

    def forward(self, rows: Tensor) -> Tensor:
        """rows: [B, H, W, C]. Returns the same shape."""
        # The gradient of a sum, unlike a mean's, takes no pass over the map.
        means = rows.sum(dim=(1, 2)) / (rows.shape[1] * rows.shape[2])
        gates = self.excite(F.gelu(self.squeeze(means))).sigmoid()
        scaled: Tensor = rows * gates[:, None, None]
        return scaled


class GeneratorStep(nn.Module):
    """x + 1x1(squeeze-excite(GELU(depthwise 3x3(x)))) [GCViT's fused block, as far as its paper tells]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        self.squeeze_excite = SqueezeExcite(width)
        self.pointwise = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W], channels last in memory. Returns the same shape, laid out alike."""
        rows = self.squeeze_excite(F.gelu(self.depthwise(x)).permute(0, 2, 3, 1))  # [B, H, W, C]
        out: Tensor = x + project(rows, self.pointwise.weight.flatten(1), self.pointwise.bias).permute(0, 3, 1, 2)
        return out


class ConvGenerator(nn.Module):
    """Halve a stage's map until it is as large as a window: the global window G [ours, section 2]."""

    def __init__(self, width: int, map_size: int, window_size: int) -> None:
        super().__init__()
        self.window_size = fitted_window(window_size, map_size)
        self.halvings = halvings(map_size, self.window_size)
        self.steps = nn.ModuleList(GeneratorStep(width) for _ in range(max(1, self.halvings)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, H, W, C]. Returns G: [B, w * w, C]."""
        x = x.permute(0, 3, 1, 2)  # [B, C, H, W], channels last in memory
        for index, step in enumerate(self.steps):
            x = step(x)
            if index < self.halvings:
                x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        if x.shape[-1] != self.window_size:
            x = F.adaptive_avg_pool2d(x, self.window_size)
        normed: Tensor = self.norm(x.flatten(2).transpose(1, 2))
        return normed


class AveragePoolGenerator(nn.Module):
    """The switch `global_window_source: avgpool`: G is the stage's map, averaged down."""

    def __init__(self, width: int, map_size: int, window_size: int) -> None:
        super().__init__()
        self.window_size = fitted_window(window_size, map_size)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, H, W, C]. Returns G: [B, w * w, C]."""
        pooled = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), self.window_size)
        normed: Tensor = self.norm(pooled.flatten(2).transpose(1, 2))
        return normed


class LocalQueryAttention(nn.Module):
    """gate * GLCA(X, G), GLCA(X, G) = softmax(X Wq (G Wk)^T / sqrt(d)) G Wv Wo [section 2].

    Keys and values are the same for every local token, so windows and their shift do not matter here and no
    partition is needed: it is one attention of H * W queries over w * w keys.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, global_window: Tensor, gate: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """x: [B, H, W, C]. global_window: [B, w * w, C]. gate: [C]. norm: of x's tokens, or None. Returns x's shape."""
        batch, height, width, channels = x.shape
        pair = linear(self.key_value, global_window).view(batch, -1, 2, self.num_heads, channels // self.num_heads)
        key, value = pair.permute(2, 0, 3, 1, 4)  # each [B, heads, w * w, d]
        if x.device.type == "cpu" and _many_tokens(x):
            folded: Tensor = self.proj_drop(self._folded(x.flatten(1, 2), key, value, gate, norm))
            return folded.view_as(x)
        query = norm_linear(norm, self.query, x).view(batch, height * width, self.num_heads, -1).transpose(1, 2)
        attended = attend(query, key, value).transpose(1, 2)
        out: Tensor = self.proj_drop(linear(self.proj, attended.reshape(batch, height, width, channels), gate))
        return out

    def _folded(self, x: Tensor, key: Tensor, value: Tensor, gate: Tensor, norm: nn.LayerNorm | None) -> Tensor:
        """`forward` with Wq and the norm in the keys and gate * Wo in the values.

        The values hold the projection's bias too, since the weights of a row sum to 1.

        x: [B, H * W, C]. key, value: [B, heads, w * w, d]. gate: [C]. Returns [B, H * W, C].
        """
        depth = key.shape[-1]
        scale = depth**-0.5
        weight, bias = (self.query.weight, self.query.bias) if norm is None else behind_norm(norm, self.query)
        x = x if norm is None else standardised(norm, x)
        query_weight = (weight * scale).view(self.num_heads, depth, -1)  # [heads, d, C]
        query_bias = (bias * scale).view(self.num_heads, depth, 1)
        proj_weight = (self.proj.weight * gate[:, None]).t().view(self.num_heads, depth, -1)  # [heads, d, C]
        values = value @ proj_weight + (self.proj.bias * gate / self.num_heads).to(value.dtype)
        keys, key_bias = key @ query_weight, key @ query_bias
        return attend_shared(x, keys.flatten(1, 2), key_bias.flatten(1, 2), values.flatten(1, 2), self.num_heads)


class GlobalQueryAttention(nn.Module):
    """The switch `global_query: global`: GCViT's direction, the global window asks each local window.

    Query p of the global window gives the output at position p of every local window; keys and values are local,
    so windows are cut, and shifted ones masked, as in self-attention.
    """

    relative_position_index: Tensor

    def __init__(self, width: int, num_heads: int, geometry: WindowGeometry, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.geometry = geometry
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * geometry.window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", pair_offsets(geometry.window_size), persistent=False)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, global_window: Tensor, gate: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """x: [B, H, W, C]. global_window: [B, w * w, C]. gate: [C]. norm: of x's tokens, or None. Returns x's shape."""
        x = x if norm is None else norm(x)
        batch, _, _, channels = x.shape
        depth = channels // self.num_heads
        windows = self.geometry.cut(x)  # [B * windows, N, C]
        count, tokens, _ = windows.shape
        pair = linear(self.key_value, windows).view(count, tokens, 2, self.num_heads, depth)
        key, value = pair.permute(2, 0, 3, 1, 4)
        query = linear(self.query, global_window).view(batch, 1, tokens, self.num_heads, depth).transpose(2, 3)
        query = query.expand(-1, count // batch, -1, -1, -1).reshape(count, self.num_heads, tokens, depth)
        bias = gather_bias(self.relative_position_bias_table, self.relative_position_index)
        attended = attend_windows(query, key, value, bias, self.geometry.mask)
        return self.geometry.uncut(self.proj_drop(linear(self.proj, attended, gate)))
