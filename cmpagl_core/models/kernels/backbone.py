"""A feature extractor's maps, computed for as many images at once as fit the CPU caches."""

from __future__ import annotations

import torch
from torch import Tensor

from cmpagl_core.models.backbone import Backbone

_IMAGES_AT_ONCE = 8


class GroupedBackbone(Backbone):
    """`Backbone` that processes eight images at a time, unless it is being trained."""

    def parts(self, pixel_values: Tensor) -> list[Tensor]:
        if self.trainable and torch.is_grad_enabled():
            return super().parts(pixel_values)
        groups = [super(GroupedBackbone, self).parts(group) for group in torch.split(pixel_values, _IMAGES_AT_ONCE)]
        return groups[0] if len(groups) == 1 else [torch.cat(maps) for maps in zip(*groups, strict=True)]
