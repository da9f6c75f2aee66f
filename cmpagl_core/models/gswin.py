"""Gswin, the image encoder: Swin whose blocks also attend to a global window, generated once per stage (section 2)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cmpagl_core.models.backbone import Backbone, BackboneProjection, PatchStem
from cmpagl_core.models.global_window import (
    GENERATORS,
    GlobalQueryAttention,
    LocalQueryAttention,
)
from cmpagl_core.models.windows import WindowAttention, WindowGeometry
from cmpagl_core.recipe import ImageEncoderPart


class GswinEncoder(nn.Module):
    """Pixels to image tokens F: the last map, normalised and flattened, preceded by its mean (section 2)."""

    def __init__(self, cfg: ImageEncoderPart, image_size_px: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.image_size_px = image_size_px
        first, width = cfg.first_stage, cfg.stage_width(cfg.first_stage)
        self.patch_embed: PatchStem | Backbone = PatchStem(width) if cfg.backbone == "none" else Backbone(cfg)
        self.backbone_projection = (
            BackboneProjection(self.patch_embed.part_channels, width)
            if isinstance(self.patch_embed, Backbone)
            else None
        )
        self.map_size = self.patch_embed.map_size(image_size_px)
        rates = np.linspace(0.0, cfg.drop_path, sum(cfg.depths)).tolist()
        self.layers = nn.ModuleDict()
        size = self.map_size
        for stage in range(first, 4):
            size = size if stage == first else -(-size // 2)
            drop_paths, rates = rates[: cfg.depths[stage]], rates[cfg.depths[stage] :]
            self.layers[str(stage)] = GswinStage(cfg, stage, size, drop_paths)
        self.last_map_size = size
        self.width = cfg.stage_width(3)
        self.norm = nn.LayerNorm(self.width)
        self._initialise()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: [B, 3, S, S]. Returns image tokens [B, 1 + N, C], their mean first."""
        return self.forward_map(self.embed(pixel_values))

    def embed(self, pixel_values: Tensor) -> Tensor:
        """The first map, [B, C, h, w], which may be cached for a frozen backbone."""
        out: Tensor = self.patch_embed(pixel_values)
        return out

    def forward_map(self, backbone_map: Tensor) -> Tensor:
        """backbone_map: [B, C, h, w]. Returns image tokens [B, 1 + N, C]."""
        x = backbone_map.permute(0, 2, 3, 1)  # [B, h, w, C]
        if x.shape[1:3] != (self.map_size, self.map_size):
            raise ValueError(f"the map is {tuple(x.shape[1:3])}, but the encoder is built for {self.map_size} squared")
        if self.backbone_projection is not None:
            x = self.backbone_projection(x[..., : sum(self.backbone_projection.part_channels)])
        for stage in self.layers.values():
            x = stage(x)
        tokens = self.norm(x).flatten(1, 2)  # [B, N, C]
        return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)

    def set_backbone_trainable(self, trainable: bool) -> None:
        """Freeze or unfreeze a timm backbone; Swin's own patch embedding is always trained."""
        if isinstance(self.patch_embed, Backbone):
            self.patch_embed.set_trainable(trainable)

    def fold_backbone_norms(self) -> None:
        """Prepare a timm backbone for inference; see `Backbone.fold_norms`."""
        if isinstance(self.patch_embed, Backbone):
            self.patch_embed.set_trainable(False)
            self.patch_embed.fold_norms()

    def _initialise(self) -> None:
        """Truncated normal for linear layers (`init`) and bias tables, zero biases; the backbone keeps timm's."""
        for name, module in self.named_modules():
            if name.startswith(("patch_embed.body", "patch_embed.head", "patch_embed.extra")):
                continue
            if isinstance(module, nn.Linear):
                by_fan_in = self.cfg.init == "fan_in"
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5 if by_fan_in else 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            table = getattr(module, "relative_position_bias_table", None)
            if isinstance(table, nn.Parameter):
                nn.init.trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, ParallelMerge):
                module.start_as_mean()


class GswinStage(nn.Module):
    """Patch merging (except in the first stage), the global window, and the branches in pairs."""

    def __init__(self, cfg: ImageEncoderPart, stage: int, map_size: int, drop_paths: list[float]) -> None:
        super().__init__()
        width = cfg.stage_width(stage)
        self.map_size, self.width = map_size, width
        with_global = cfg.global_window and stage + 1 in cfg.global_stages
        self.downsample = PatchMerging(width // 2) if stage > cfg.first_stage else None
        self.generator: nn.Module | None = None
        if with_global:
            self.generator = GENERATORS[cfg.global_window_source](width, map_size, cfg.window_size)
        shifts = [cfg.shifted_windows and index % 2 == 1 for index in range(len(drop_paths))]
        self.blocks = nn.ModuleList(
            GswinBranch(cfg, stage, WindowGeometry(map_size, cfg.window_size, shifted), rate, with_global)
            for shifted, rate in zip(shifts, drop_paths, strict=True)
        )
        self.merges = nn.ModuleList(
            ParallelMerge(width) for _ in range(len(drop_paths) // 2 if cfg.branches == "parallel" else 0)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, H, W, C]. Returns the stage's map, [B, h, w, c]."""
        if self.downsample is not None:
            x = self.downsample(x)
        global_window = None if self.generator is None else self.generator(x)
        if not self.merges:
            for block in self.blocks:
                x = block(x, global_window)
            return x
        for merge, upper, lower in zip(self.merges, self.blocks[::2], self.blocks[1::2], strict=True):
            x = merge(upper(x, global_window), lower(x, global_window))
        return x


class GswinBranch(nn.Module):
    """One branch of a Gswin block: local windows, then the global window, then the MLP (section 2).

    The upper branch works on regular windows, the lower on shifted ones. Without the global window it is a Swin
    block. With `layer_scale_init` every residual branch starts small [Touvron et al. 2021], so that over a backbone's
    deep features the encoder starts close to linear [ours].
    """

    def __init__(
        self, cfg: ImageEncoderPart, stage: int, geometry: WindowGeometry, drop_path: float, with_global: bool
    ) -> None:
        super().__init__()
        width, num_heads = cfg.stage_width(stage), cfg.num_heads[stage]
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, num_heads, geometry, cfg.dropout)
        self.scale1 = _layer_scale(width, cfg.layer_scale_init)
        self.global_branch = GlobalBranch(cfg, width, num_heads, geometry) if with_global else None
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * cfg.mlp_ratio), cfg.dropout)
        self.scale2 = _layer_scale(width, cfg.layer_scale_init)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, global_window: Tensor | None) -> Tensor:
        """x: [B, H, W, C]. global_window: [B, w * w, C], or None. Returns [B, H, W, C]."""
        x = x + self.drop_path(scaled(self.attn(self.norm1(x)), self.scale1))
        if self.global_branch is not None and global_window is not None:
            x = x + self.drop_path(self.global_branch(x, global_window))
        out: Tensor = x + self.drop_path(scaled(self.mlp(self.norm2(x)), self.scale2))
        return out


class GlobalBranch(nn.Module):
    """gate * GLCA(LN(a), G), the cross-attention with the global window; the gate starts at 0 (section 2)."""

    def __init__(self, cfg: ImageEncoderPart, width: int, num_heads: int, geometry: WindowGeometry) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = (
            LocalQueryAttention(width, num_heads, cfg.dropout)
            if cfg.global_query == "local"
            else GlobalQueryAttention(width, num_heads, geometry, cfg.dropout)
        )
        self.gate = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, global_window: Tensor) -> Tensor:
        """x: [B, H, W, C]. global_window: [B, w * w, C]. Returns the residual."""
        out: Tensor = self.gate * self.attn(self.norm(x), global_window)
        return out


class Mlp(nn.Module):
    """Linear, GELU, linear; names as in timm."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.drop = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., C]. Returns the same shape."""
        hidden = self.drop(self.act(self.fc1(x)))  # [..., hidden]
        out: Tensor = self.drop(self.fc2(hidden))
        return out


class PatchMerging(nn.Module):
    """Halve the map: 2 x 2 neighbours become one token of twice the channels [Swin, section 3.1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, H, W, C]. Returns [B, ceil(H / 2), ceil(W / 2), 2 C]; an odd side is padded with zeros."""
        out: Tensor = self.reduction(self.norm(merged_neighbours(x)))
        return out


class ParallelMerge(nn.Module):
    """The switch `branches: parallel`: both branches' outputs are concatenated and projected back.

    It is initialised to their mean, so that imported weights keep their function.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, width)

    def start_as_mean(self) -> None:
        """Set the projection to the mean of its two inputs."""
        half = torch.eye(self.linear.out_features) / 2
        with torch.no_grad():
            self.linear.weight.copy_(torch.cat([half, half], dim=1))
            self.linear.bias.zero_()

    def forward(self, upper: Tensor, lower: Tensor) -> Tensor:
        """Two [B, H, W, C]. Returns [B, H, W, C]."""
        out: Tensor = self.linear(torch.cat([upper, lower], dim=-1))
        return out


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch for some images of a training batch [Huang et al. 2016]."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """branch: [B, ...]. Returns the same shape, to be added to the residual."""
        return branch * self.kept(branch) if self.training and self.rate > 0.0 else branch

    def kept(self, branch: Tensor) -> Tensor:
        """A random factor per image, 0 or 1 / (1 - rate), which keeps the mean: [B, 1, ...]."""
        drawn = torch.rand(branch.shape[0], *([1] * (branch.dim() - 1)), device=branch.device)
        return ((drawn >= self.rate) / (1.0 - self.rate)).to(branch.dtype)


def scaled(branch: Tensor, scale: Tensor | None) -> Tensor:
    """branch: [..., C]. scale: [C], or None without LayerScale."""
    return branch if scale is None else branch * scale


def merged_neighbours(x: Tensor) -> Tensor:
    """[B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), 4 C]; Swin's order of the four: down first, then right."""
    _, height, width, _ = x.shape
    if height % 2 or width % 2:
        x = nn.functional.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    batch, height, width, channels = x.shape
    x = x.view(batch, height // 2, 2, width // 2, 2, channels)
    return x.permute(0, 1, 3, 4, 2, 5).reshape(batch, height // 2, width // 2, 4 * channels)


def _layer_scale(width: int, start: float) -> nn.Parameter | None:
    return nn.Parameter(torch.full((width,), start)) if start > 0 else None
