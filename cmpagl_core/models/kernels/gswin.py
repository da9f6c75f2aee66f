"""Gswin's stages and branches with fewer passes over memory: norms and scales folded, groups that fit the caches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmpagl_core.models.gswin import DropPath, GswinBranch, GswinStage, Mlp, PatchMerging, merged_neighbours
from cmpagl_core.models.kernels.linear import linear, norm_linear
from cmpagl_core.models.kernels.windows import window_attention

_VALUES_AT_ONCE = 8 * 56 * 56 * 96  # bytes of a stage's map; the MLP in it makes four times as many, 19 MB in bf16


class GroupedStage(GswinStage):
    """`GswinStage` that processes images in groups whose maps stay in the CPU caches."""

    def forward(self, x: Tensor) -> Tensor:
        images = max(1, _VALUES_AT_ONCE // (self.map_size**2 * self.width))
        groups = [super(GroupedStage, self).forward(group) for group in torch.split(x, images)]
        return groups[0] if len(groups) == 1 else torch.cat(groups)


class FoldedBranch(GswinBranch):
    """`GswinBranch` with norms folded into the next layer, scales into the previous one, and each sum in one pass."""

    def forward(self, x: Tensor, global_window: Tensor | None) -> Tensor:
        x = _sum(x, window_attention(self.attn, x, self.norm1, self.scale1), self.drop_path)
        if self.global_branch is not None and global_window is not None:
            x = _sum(x, self.global_branch(x, global_window), self.drop_path)
        return _sum(x, _mlp(self.mlp, x, self.norm2, self.scale2), self.drop_path)


class FoldedPatchMerging(PatchMerging):
    """`PatchMerging` with its norm folded into its projection."""

    def forward(self, x: Tensor) -> Tensor:
        return norm_linear(self.norm, self.reduction, merged_neighbours(x))


def _sum(x: Tensor, branch: Tensor, drop_path: DropPath) -> Tensor:
    """x + drop_path(branch), two [B, ...]."""
    if not drop_path.training or drop_path.rate == 0.0:
        return x + branch
    return torch.addcmul(x, branch, drop_path.kept(branch))


def _mlp(layer: Mlp, x: Tensor, norm: nn.LayerNorm, scale: Tensor | None) -> Tensor:
    """layer(norm(x)) * scale, x: [..., C], scale: [C] or None."""
    hidden = layer.drop(layer.act(norm_linear(norm, layer.fc1, x)))
    out: Tensor = layer.drop(linear(layer.fc2, hidden, scale))
    return out
