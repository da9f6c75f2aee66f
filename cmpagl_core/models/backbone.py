"""From pixels to the first map: Swin's patch embedding, or a timm feature extractor (section 2)."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cmpagl_core.errors import RecipeError
from cmpagl_core.recipe import ImageEncoderPart


class PatchStem(nn.Module):
    """Swin's patch embedding: a 4 x 4 convolution of stride 4, and a LayerNorm."""

    stride = 4

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = width
        self.proj = nn.Conv2d(3, width, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(width)

    def map_size(self, image_size_px: int) -> int:
        """Side of the map; pixels beyond a multiple of 4 are dropped, as in timm."""
        return image_size_px // 4

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: [B, 3, S, S]. Returns [B, C, h, w]."""
        x = self.proj(pixel_values).permute(0, 2, 3, 1)
        normed: Tensor = self.norm(x)
        return normed.permute(0, 3, 1, 2)


class Backbone(nn.Module):
    """Maps of a timm feature extractor at the recipe's strides, concatenated by channel at the finest [ours].

    Coarser maps are resized bilinearly to the finest one. Batch norms always use their stored statistics, so an
    image's map never depends on its batch. Extra backbones (`extra_backbones`, run at `extra_backbone_px`) contribute
    only their pooled map; it is broadcast after the map's own channels, so that each image still has one map.
    """

    def __init__(self, cfg: ImageEncoderPart) -> None:
        super().__init__()
        self.stride = min(cfg.backbone_strides)
        self.body, strides, channels = _extractor(cfg.backbone, tuple(sorted(set(cfg.backbone_strides))))
        self.head: nn.Sequential | None = None
        if cfg.backbone_head:
            self.head = _last_convolution(cfg.backbone, max(strides))
            channels[-1] = int(self.head[0].out_channels)  # type: ignore[arg-type]
        self.part_channels = tuple(channels)
        self.extra = nn.ModuleList(
            Backbone(cfg.model_copy(update={"backbone": name, "extra_backbones": (), "extra_backbone_px": ()}))
            for name in cfg.extra_backbones
        )
        self.also_px: tuple[int | None, ...] = cfg.extra_backbone_px or (None,) * len(cfg.extra_backbones)
        self.extra_channels: tuple[int, ...] = tuple(sum(backbone.part_channels) for backbone in self.others)
        self.channels = sum(channels) + sum(self.extra_channels)
        self.set_trainable(cfg.backbone_trainable)
        self.eval()

    def set_trainable(self, trainable: bool) -> None:
        """Freeze or unfreeze all weights."""
        self.trainable = trainable
        self.requires_grad_(trainable)

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: stored batch norm statistics, no dropout."""
        return super().train(False)

    def fold_norms(self) -> bool:
        """Fold every batch norm into the convolution before it: the same maps a third faster, but not trainable.

        State names change, so call it after loading weights. Returns False and changes nothing if the extractor's
        layers do not run in the order in which they are listed. Raises RuntimeError while trainable.
        """
        if self.trainable:
            raise RuntimeError("batch norms of a trainable backbone cannot be folded")
        folded = copy.deepcopy(self)
        _fold_norms(folded)
        if not _same_maps(self, folded):
            return False
        self.body, self.head, self.extra = folded.body, folded.head, folded.extra
        return True

    def map_size(self, image_size_px: int) -> int:
        """Side of the finest map."""
        return -(-image_size_px // self.stride)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: [B, 3, S, S]. Returns [B, C, h, w]; without gradients while frozen."""
        return self.join(self.parts(pixel_values))

    def parts(self, pixel_values: Tensor) -> list[Tensor]:
        """The extractor's own maps, finest first, before head and concatenation, which is what a cache stores.

        They are followed by the pooled map of each extra backbone, [B, C_i, 1, 1].
        """
        if _channels_last_is_faster(pixel_values.device.type):
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            averaged = [
                backbone(_resized(pixel_values, side_px)).float().mean(dim=(2, 3), keepdim=True)
                for backbone, side_px in zip(self.others, self.also_px, strict=True)
            ]
            return [*self.body(pixel_values), *averaged]

    def join(self, parts: list[Tensor]) -> Tensor:
        """parts: [B, C_i, h_i, w_i] of `parts`. Returns [B, C, h, w]."""
        with torch.set_grad_enabled(self.trainable and torch.is_grad_enabled()):
            own = len(parts) - len(self.extra)
            maps = [*parts[: own - 1], parts[own - 1] if self.head is None else self.head(parts[own - 1])]
            finest = maps[0].shape[-2:]
            sized = [
                x if x.shape[-2:] == finest else F.interpolate(x, size=finest, mode="bilinear", align_corners=False)
                for x in maps
            ]
            sized += [averaged.to(sized[0].dtype).expand(-1, -1, *finest) for averaged in parts[own:]]
            return sized[0] if len(sized) == 1 else torch.cat(sized, dim=1)

    @property
    def others(self) -> list[Backbone]:
        """The extra backbones."""
        return [backbone for backbone in self.extra if isinstance(backbone, Backbone)]


class BackboneProjection(nn.Module):
    """From the backbone's channels to the first stage's width: LayerNorm of each map's channels, then linear."""

    def __init__(self, part_channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.part_channels = part_channels
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in part_channels)
        self.linear = nn.Linear(sum(part_channels), width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, h, w, C of the backbone]. Returns [B, h, w, width]."""
        parts = torch.split(x, list(self.part_channels), dim=-1)
        normed = [norm(part) for norm, part in zip(self.norms, parts, strict=True)]
        out: Tensor = self.linear(torch.cat(normed, dim=-1))
        return out


def _extractor(name: str, strides: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...], list[int]]:
    """The extractor that ends at the coarsest wanted stride, its strides and channels, finest first."""
    import timm  # imported here, since it is slow and not always needed

    try:
        with torch.device("meta"):
            known = timm.create_model(name, pretrained=False, features_only=True).feature_info.reduction()
        missing = [stride for stride in strides if stride not in known]
        if missing:
            raise RecipeError(f"backbone {name} has no map at stride {missing[0]}", hint=f"it has {sorted(set(known))}")
        indices = tuple(len(known) - 1 - known[::-1].index(stride) for stride in strides)
        body = timm.create_model(name, pretrained=False, features_only=True, out_indices=indices)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise RecipeError(
            f"backbone {name!r} is not a timm feature extractor",
            hint="write none, or for instance tf_efficientnet_lite0",
        ) from error
    _drop_unused(body)
    return body, strides, [int(channels) for channels in body.feature_info.channels()]


def _channels_last_is_faster(device_type: str) -> bool:
    """channels_last: convolutions take half the time in half precision, three quarters in fp32 on a CPU.

    The meta device, used for counting, has no autocast.
    """
    return device_type == "cpu" or (device_type != "meta" and torch.is_autocast_enabled(device_type))


def _resized(pixel_values: Tensor, side_px: int | None) -> Tensor:
    """pixel_values: [B, 3, S, S]. Returns them resized, or unchanged."""
    if side_px is None or side_px == pixel_values.shape[-1]:
        return pixel_values
    if torch.onnx.is_in_onnx_export():  # ONNX has no operator that is equal to this one, which is linear on each axis
        before = pixel_values.shape[-1]
        blank = torch.eye(before)[None, None]
        rows = F.interpolate(blank, size=(side_px, before), mode="bicubic", antialias=True)[0, 0].numpy()
        weights = torch.from_numpy(rows)  # [side_px, S], a constant of the graph
        return weights @ pixel_values @ weights.T
    return F.interpolate(pixel_values, size=(side_px, side_px), mode="bicubic", antialias=True)


def _drop_unused(body: Any) -> None:
    """Remove the blocks after the coarsest wanted map, which timm's EfficientNets would still compute."""
    blocks, last = getattr(body, "blocks", None), str(body.feature_info.module_name()[-1])
    if isinstance(blocks, nn.Sequential) and last.startswith("blocks."):
        body.blocks = blocks[: int(last.split(".")[1]) + 1]


def _fold_norms(module: nn.Module) -> None:
    """Each batch norm that directly follows a convolution among the children; its activation is kept."""
    before: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None and isinstance(before[1], nn.Conv2d):
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            activation = getattr(child, "act", None)
            setattr(module, name, nn.Identity() if activation is None else activation)
        else:
            _fold_norms(child)
        before = (name, child)


def _same_maps(backbone: Backbone, other: Backbone) -> bool:
    """Whether both give the same map of random noise, up to rounding."""
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(next(backbone.parameters()).device)
    with torch.inference_mode():
        expected, found = backbone(noise), other(noise)
    return bool((expected - found).abs().max() <= 1e-3 * expected.abs().max().clamp(min=1e-6))


def _last_convolution(name: str, widest_stride: int) -> nn.Sequential:
    """The 1x1 convolution and norm at the end of EfficientNets and MobileNets."""
    import timm

    full = timm.create_model(name, pretrained=False, num_classes=0)
    convolution, norm = getattr(full, "conv_head", None), getattr(full, "bn2", None)
    if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.Module):
        raise RecipeError(f"backbone {name} has no last 1x1 convolution", hint="set image_encoder.backbone_head false")
    if widest_stride != 32:
        raise RecipeError(
            "backbone_head belongs to the map at stride 32", hint="add 32 to image_encoder.backbone_strides"
        )
    return nn.Sequential(convolution, norm)
