"""The global window, generated once per stage from its map, and its attention with local tokens (section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmpagl_core.models.attention import attend, attend_windows, join_heads, split_heads
from cmpagl_core.models.windows import WindowGeometry, fitted_window, pair_offsets, window_bias

_SQUEEZE = 4  # channels are squeezed by this factor before they are excited


class ConvGenerator(nn.Module):
    """Halve a stage's map until it has the size of a window: the global window G [ours, section 2]."""

    def __init__(self, width: int, map_size: int, window_size: int) -> None:
        super().__init__()
        self.window_size = fitted_window(window_size, map_size)
        self.halvings = halvings(map_size, self.window_size)
        self.steps = nn.ModuleList(GeneratorStep(width) for _ in range(max(1, self.halvings)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, H, W, C]. Returns G: [B, w * w, C]."""
        x = x.permute(0, 3, 1, 2)  # [B, C, H, W]
        for index, step in enumerate(self.steps):
            x = step(x)
            if index < self.halvings:
                x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        if x.shape[-1] != self.window_size:
            x = F.adaptive_avg_pool2d(x, self.window_size)
        normed: Tensor = self.norm(x.flatten(2).transpose(1, 2))
        return normed


class AveragePoolGenerator(nn.Module):
    """The switch `global_window_source: avgpool`: G is the stage's map, average-pooled."""

    def __init__(self, width: int, map_size: int, window_size: int) -> None:
        super().__init__()
        self.window_size = fitted_window(window_size, map_size)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, H, W, C]. Returns G: [B, w * w, C]."""
        pooled = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), self.window_size)
        normed: Tensor = self.norm(pooled.flatten(2).transpose(1, 2))
        return normed


class RandomGenerator(nn.Module):
    """The switch `global_window_source: random`: G is drawn once, never trained, and the same for every image.

    It costs what attention to a global window costs and says nothing about the image.
    """

    tokens: Tensor

    def __init__(self, width: int, map_size: int, window_size: int) -> None:
        super().__init__()
        self.register_buffer("tokens", torch.randn(fitted_window(window_size, map_size) ** 2, width))  # [w * w, C]

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, H, W, C]. Returns G: [B, w * w, C]."""
        return self.tokens.expand(len(x), -1, -1)


GENERATORS: dict[str, type[nn.Module]] = {
    "conv": ConvGenerator,
    "avgpool": AveragePoolGenerator,
    "random": RandomGenerator,
}


class LocalQueryAttention(nn.Module):
    """GLCA(X, G) = softmax(X Wq (G Wk)^T / sqrt(d)) G Wv Wo [section 2].

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

    def forward(self, x: Tensor, global_window: Tensor) -> Tensor:
        """x: [B, H, W, C]. global_window: [B, w * w, C]. Returns x's shape."""
        query = split_heads(self.query(x.flatten(1, 2)), self.num_heads)  # [B, heads, H * W, d]
        key, value = (split_heads(part, self.num_heads) for part in self.key_value(global_window).chunk(2, dim=-1))
        attended = join_heads(attend(query, key, value)).view_as(x)
        out: Tensor = self.proj_drop(self.proj(attended))
        return out


class GlobalQueryAttention(nn.Module):
    """The switch `global_query: global`: GCViT's direction, the global window queries each local window.

    Query p of the global window gives the output at position p of every local window; keys and values are local,
    so the map is partitioned into windows, and shifted ones are masked, as in self-attention.
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

    def forward(self, x: Tensor, global_window: Tensor) -> Tensor:
        """x: [B, H, W, C]. global_window: [B, w * w, C]. Returns x's shape."""
        windows = self.geometry.cut(x)  # [B * windows, N, C]
        key, value = (split_heads(part, self.num_heads) for part in self.key_value(windows).chunk(2, dim=-1))
        query = split_heads(self.query(global_window), self.num_heads)  # [B, heads, N, d], the same in every window
        query = query.repeat_interleave(len(windows) // len(x), dim=0)
        attended = join_heads(attend_windows(query, key, value, self.bias()))
        return self.geometry.uncut(self.proj_drop(self.proj(attended)))

    def bias(self) -> Tensor:
        """The additive bias of the scores: [1 or windows, heads, N, N]."""
        return window_bias(self.relative_position_bias_table, self.relative_position_index, self.geometry.mask)


class GeneratorStep(nn.Module):
    """x + 1x1(squeeze-excite(GELU(depthwise 3x3(x)))) [GCViT's fused block, as far as its paper describes it]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        self.squeeze_excite = SqueezeExcite(width)
        self.pointwise = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]. Returns the same shape."""
        out: Tensor = x + self.pointwise(self.squeeze_excite(F.gelu(self.depthwise(x))))
        return out


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channel means [Hu et al. 2018]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = max(1, width // _SQUEEZE)
        self.squeeze = nn.Linear(width, squeezed)
        self.excite = nn.Linear(squeezed, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]. Returns the same shape."""
        gates = self.excite(F.gelu(self.squeeze(x.mean(dim=(2, 3))))).sigmoid()  # [B, C]
        scaled: Tensor = x * gates[:, :, None, None]
        return scaled


def halvings(map_size: int, window_size: int) -> int:
    """How often a map can be halved (rounding up) before it is smaller than a window."""
    count = 0
    while -(-map_size // 2) >= window_size and map_size > window_size:
        map_size, count = -(-map_size // 2), count + 1
    return count
