"""The global window with gate, norm and, for many tokens, all projections folded into its few keys (ours)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cmpagl_core.models.attention import by_windows, join_heads, split_heads
from cmpagl_core.models.global_window import GeneratorStep, GlobalQueryAttention, LocalQueryAttention, SqueezeExcite
from cmpagl_core.models.gswin import GlobalBranch
from cmpagl_core.models.kernels.attention import attend, attend_shared
from cmpagl_core.models.kernels.linear import behind_norm, linear, norm_linear, project, standardised

_TOKENS_A_CHANNEL = 2  # from this many tokens on, projections are folded into the global window's keys


class FoldedGlobalBranch(GlobalBranch):
    """`GlobalBranch` with its gate folded into the last projection and its norm into the first."""

    def forward(self, x: Tensor, global_window: Tensor) -> Tensor:
        if isinstance(self.attn, GlobalQueryAttention):
            return _global_query(self.attn, self.norm(x), global_window, self.gate)
        return _local_query(self.attn, x, global_window, self.gate, self.norm)


class RowsGeneratorStep(GeneratorStep):
    """`GeneratorStep` whose 1 x 1 convolution is computed as a linear layer over channels."""

    def forward(self, x: Tensor) -> Tensor:
        rows = _excited(self.squeeze_excite, F.gelu(self.depthwise(x)).permute(0, 2, 3, 1))  # [B, H, W, C]
        out: Tensor = x + project(rows, self.pointwise.weight.flatten(1), self.pointwise.bias).permute(0, 3, 1, 2)
        return out


def _excited(layer: SqueezeExcite, rows: Tensor) -> Tensor:
    """`SqueezeExcite` of [B, H, W, C]."""
    # unlike a mean's, the gradient of a sum needs no pass over the map
    means = rows.sum(dim=(1, 2)) / (rows.shape[1] * rows.shape[2])
    gates = layer.excite(F.gelu(layer.squeeze(means))).sigmoid()
    scaled: Tensor = rows * gates[:, None, None]
    return scaled


def _local_query(
    layer: LocalQueryAttention, x: Tensor, global_window: Tensor, gate: Tensor, norm: nn.LayerNorm
) -> Tensor:
    """gate * layer(norm(x), global_window): [B, H, W, C]."""
    pair = linear(layer.key_value, global_window).view(len(x), -1, 2, layer.num_heads, x.shape[-1] // layer.num_heads)
    key, value = pair.permute(2, 0, 3, 1, 4)  # each [B, heads, w * w, d]
    tokens = x.flatten(1, 2)  # [B, H * W, C]
    if x.device.type == "cpu" and tokens.shape[1] >= _TOKENS_A_CHANNEL * tokens.shape[2]:
        folded: Tensor = layer.proj_drop(_all_folded(layer, tokens, key, value, gate, norm))
        return folded.view_as(x)
    query = split_heads(norm_linear(norm, layer.query, tokens), layer.num_heads)
    attended = join_heads(attend(query, key, value))
    out: Tensor = layer.proj_drop(linear(layer.proj, attended, gate))
    return out.view_as(x)


def _all_folded(
    layer: LocalQueryAttention, x: Tensor, key: Tensor, value: Tensor, gate: Tensor, norm: nn.LayerNorm
) -> Tensor:
    """The attention with Wq and the norm folded into the keys and gate * Wo into the values.

    The values include the projection's bias too, since the weights of a row sum to 1.

    x: [B, H * W, C]. key, value: [B, heads, w * w, d]. gate: [C]. Returns [B, H * W, C].
    """
    heads, depth = layer.num_heads, key.shape[-1]
    weight, bias = behind_norm(norm, layer.query)
    query_weight = (weight * depth**-0.5).view(heads, depth, -1)  # [heads, d, C]
    query_bias = (bias * depth**-0.5).view(heads, depth, 1)
    proj_weight = (layer.proj.weight * gate[:, None]).t().view(heads, depth, -1)  # [heads, d, C]
    values = value @ proj_weight + (layer.proj.bias * gate / heads).to(value.dtype)
    keys, key_bias = key @ query_weight, key @ query_bias
    return attend_shared(standardised(norm, x), keys.flatten(1, 2), key_bias.flatten(1, 2), values.flatten(1, 2), heads)


def _global_query(layer: GlobalQueryAttention, x: Tensor, global_window: Tensor, gate: Tensor) -> Tensor:
    """gate * layer(x, global_window): [B, H, W, C]."""
    windows, bias = layer.geometry.cut(x), layer.bias()  # [B * windows, N, C], [1 or windows, heads, N, N]
    pair = linear(layer.key_value, windows).view(*windows.shape[:2], 2, layer.num_heads, -1)
    key, value = pair.permute(2, 0, 3, 1, 4)  # each [B * windows, heads, N, d]
    query = split_heads(linear(layer.query, global_window), layer.num_heads)  # [B, heads, N, d]
    query = query[:, None].expand(-1, len(windows) // len(x), -1, -1, -1).flatten(0, 1)
    query, key, of_windows = (by_windows(part, len(bias)) for part in (query, key, value))
    attended = attend(query, key, of_windows, bias.flatten(0, 1)).view_as(value)
    return layer.geometry.uncut(layer.proj_drop(linear(layer.proj, join_heads(attended), gate)))
