"""A linear probe of a pretrained backbone, to which Gswin is added through a gate [ours]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmpagl_core.models.backbone import BackboneProjection
from cmpagl_core.models.gswin import DropPath
from cmpagl_core.recipe import ImageEncoderPart


class BackboneSkip(nn.Module):
    """image_features from the backbone's pooled map, plus Gswin's projection through a gate [ours].

    Each extra backbone gives its own group of features, from its pooled map alone.

    The gate starts at 0, so training starts from a linear probe of pretrained features and Gswin adds what they lack.
    A single linear layer goes directly to the features; two in a row rank worse.
    """

    def __init__(
        self, cfg: ImageEncoderPart, part_channels: tuple[int, ...], extra_channels: tuple[int, ...], embed_dim: int
    ) -> None:
        super().__init__()
        probes = (part_channels, *((channels,) for channels in extra_channels))
        self.channels = [sum(probe) for probe in probes]
        self.projections = nn.ModuleList(BackboneProjection(probe, embed_dim // len(probes)) for probe in probes)
        self.dropout = nn.Dropout(cfg.backbone_skip_dropout)
        self.gate = nn.Parameter(torch.zeros(embed_dim))
        self.drop_path = DropPath(cfg.drop_path)

    def forward(self, projected: Tensor, backbone_map: Tensor) -> Tensor:
        """projected: [B, D], of Gswin. backbone_map: [B, C of the backbone, h, w]. Returns [B, D]."""
        pooled = self.dropout(backbone_map.float().mean(dim=(2, 3)))  # [B, C of the backbone]
        shares = torch.split(pooled, self.channels, dim=1)
        probed = [projection(share) for projection, share in zip(self.projections, shares, strict=True)]
        out: Tensor = torch.cat(probed, dim=1) + self.drop_path(projected * self.gate)
        return out
