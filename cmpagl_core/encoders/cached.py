"""Features from a frozen backbone's maps in half precision: cached by a training, or rounded in the same way (ours)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cmpagl_core.datasets.augment import d4_transform
from cmpagl_core.datasets.loading import WHOLE, Draw
from cmpagl_core.encoders.backbone_cache import (
    BackboneCache,
    CachedMaps,
    backbone_cache_folder,
    backbone_settings,
    open_backbone_cache,
)
from cmpagl_core.encoders.backbone_maps import rounded_maps
from cmpagl_core.encoders.encode import forward_pass, unit_rows
from cmpagl_core.encoders.encoder import Features
from cmpagl_core.models.backbone import Backbone
from cmpagl_core.runs import LoadedModel, Run, read_tensors

if TYPE_CHECKING:
    from cmpagl_core.models.cmpagl import CmpaglModel, ImageEncoding


def encode_flat_maps(model: CmpaglModel, cache: BackboneCache, maps: Tensor) -> ImageEncoding:
    """maps: [B, values] of the cache. Raises ValueError for a model without a backbone."""
    return model.encode_backbone_maps(_backbone_of(model).join(cache.unflatten(maps)))


def cache_of_run(run: Run, loaded: LoadedModel, cache_root: Path) -> BackboneCache | None:
    """The maps that trainings with this backbone left in a workspace's cache; None if there are none.

    A fine-tuned backbone has other weights than the cached one, so cached maps are never used for it.
    Raises DataError for a broken shard.
    """
    backbone, folder = loaded.model.image_encoder.patch_embed, backbone_cache_folder(cache_root)
    if not isinstance(backbone, Backbone) or not folder.is_dir():
        return None
    settings = backbone_settings(run.recipe, loaded.device)
    return open_backbone_cache(folder, backbone, read_tensors(run.weights_path), settings, loaded.device)


def cached_features(loaded: LoadedModel, source: CachedMaps, views: int) -> Iterator[tuple[list[int], Features]]:
    """Rows of the source's images and their features [B, D], averaged over the first `views` views."""
    size, count = loaded.recipe.evaluate.batch_size, len(source.image_sha256)
    for start in range(0, count, size):
        rows = list(range(start, min(start + size, count)))
        seen = []
        for view in range(views):
            maps = source.gather([Draw(row, 0, view, WHOLE) for row in rows]).to(loaded.device)
            with forward_pass(loaded):
                seen.append(encode_flat_maps(loaded.model, source.cache, maps).features.float())
        yield rows, unit_rows(torch.stack(seen).mean(dim=0))


def rounded_features(loaded: LoadedModel, pixel_values: Tensor, views: int) -> Tensor:
    """pixel_values: [B, 3, S, S]. Returns [B, D], the same as `cached_features`, before normalisation.

    Raises ValueError for a model without a backbone.
    """
    backbone, on_device = _backbone_of(loaded.model), pixel_values.to(loaded.device)
    seen = []
    for view in range(views):
        with forward_pass(loaded):
            maps = backbone.join(rounded_maps(backbone.parts(d4_transform(on_device, view))))
            seen.append(loaded.model.encode_backbone_maps(maps).features.float())
    return torch.stack(seen).mean(dim=0)


def _backbone_of(model: CmpaglModel) -> Backbone:
    backbone = model.image_encoder.patch_embed
    if not isinstance(backbone, Backbone):
        raise ValueError("a model without a backbone has no maps to cache")
    return backbone
