"""A frozen backbone's maps of images in several views, in half precision: by torch, or by ONNX Runtime (ours)."""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmpagl_core.datasets.augment import d4_transform
from cmpagl_core.device import autocast
from cmpagl_core.encoders.decode import DecodedBatch, decoded_batches, image_decoder
from cmpagl_core.encoders.image_graph import GraphInfo, MapsGraph, arrays_stacked, runtime_is_installed
from cmpagl_core.encoders.run_graph import exporter_is_installed
from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import decoded_px, pixel_array, to_pixel_values
from cmpagl_core.locks import hold
from cmpagl_core.models.backbone import Backbone
from cmpagl_core.progress import Progress

_VIEWS_AT_ONCE = 128  # batch size, in views of one or several images
_LARGEST_HALF = 65504.0

Half = NDArray[np.float16]


@dataclass(frozen=True)
class MapsBatch:
    """The maps of some images, [images, views, values], and which images of those asked for they are."""

    maps: Half
    decoded: DecodedBatch


class MapsEncoder(Protocol):
    """What computes the maps of images in all views."""

    def batches(self, images: Sequence[ImageRef]) -> Generator[MapsBatch, None, None]:
        """All images in order, decoded in the background; broken ones are in `decoded`."""


@dataclass(frozen=True)
class TorchMaps:
    """By torch, on any device and in any precision. backbone: with its norms folded where it can be."""

    backbone: Backbone
    image_size_px: int
    views: tuple[int, ...]
    device: torch.device
    precision: str

    def batches(self, images: Sequence[ImageRef]) -> Generator[MapsBatch, None, None]:
        size_px = self.image_size_px
        decode = image_decoder(lambda image: to_pixel_values(image, size_px), decoded_px(size_px))
        for batch in decoded_batches(images, decode, _images_at_once(self.views)):
            yield MapsBatch(self._maps(batch.pixel_values) if batch.rows else np.empty((0, 0, 0), np.float16), batch)

    def _maps(self, pixel_values: Tensor) -> Half:
        on_device = pixel_values.to(self.device)
        turned = torch.stack([d4_transform(on_device, view) for view in self.views], dim=1)  # [B, V, 3, S, S]
        with torch.inference_mode(), autocast(self.device, self.precision):
            parts = self.backbone.parts(turned.flatten(0, 1))
        maps: Half = half_maps(parts).cpu().numpy()
        return maps.reshape(len(pixel_values), len(self.views), -1)


@dataclass(frozen=True)
class RuntimeMaps:
    """By ONNX Runtime on the CPU in fp32, a few views a thread."""

    graph: MapsGraph
    views: tuple[int, ...]

    def batches(self, images: Sequence[ImageRef]) -> Generator[MapsBatch, None, None]:
        size_px = self.graph.info.image_size_px
        decode = image_decoder(lambda image: pixel_array(image, size_px), decoded_px(size_px))
        with ExitStack() as stack:
            maps_of = stack.enter_context(self.graph.running())
            decoded = decoded_batches(images, decode, _images_at_once(self.views), stack=arrays_stacked)
            for batch in stack.enter_context(closing(decoded)):
                found = [_halved(maps_of(batch.pixel_values, view)) for view in self.views] if batch.rows else []
                yield MapsBatch(np.stack(found, axis=1) if found else np.empty((0, 0, 0), np.float16), batch)


def folded(backbone: Backbone) -> Backbone:
    """A frozen copy with its norms folded where they can be."""
    other = copy.deepcopy(backbone)
    other.set_trainable(False)  # one that is unfrozen later is frozen while its maps are cached
    other.fold_norms()
    return other


def maps_graph(path: Path, backbone: Backbone, info: GraphInfo, progress: Progress) -> MapsGraph | None:
    """The graph of a folded backbone at `path`, written if need be; None where torch has to do, said if it failed."""
    if not runtime_is_installed() or not (path.is_file() or exporter_is_installed()):
        return None
    try:
        with hold(path, progress.say):
            return _kept_graph(path, info, progress) or _written_graph(path, backbone, info, progress)
    except CmpaglError as error:
        progress.say(f"maps are computed by torch: {error}")
        return None


def _kept_graph(path: Path, info: GraphInfo, progress: Progress) -> MapsGraph | None:
    if not path.is_file():
        return None
    try:
        return MapsGraph(path, info.model_sha256)
    except DataError as error:
        progress.say(f"not used: {error}")
        return None


def _written_graph(path: Path, backbone: Backbone, info: GraphInfo, progress: Progress) -> MapsGraph:
    from cmpagl_core.encoders.onnx_export import export_backbone

    progress.say("writing the frozen backbone for ONNX Runtime, once")
    export_backbone(backbone, info, path)
    return MapsGraph(path, info.model_sha256)


def half_maps(parts: Sequence[Tensor]) -> Tensor:
    """A backbone's own maps [B, C_i, h_i, w_i] as stored in a cache, float16 [B, values]."""
    return torch.cat([_to_half(part).flatten(1) for part in parts], dim=1)


def rounded_maps(parts: Sequence[Tensor]) -> list[Tensor]:
    """A backbone's own maps as read from a cache, float32 [B, C_i, h_i, w_i]."""
    return [_to_half(part).float() for part in parts]


def _to_half(maps: Tensor) -> Tensor:
    return maps.float().clamp(-_LARGEST_HALF, _LARGEST_HALF).half()


def _halved(maps: NDArray[np.float32]) -> Half:
    return maps.clip(-_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)


def _images_at_once(views: Sequence[int]) -> int:
    return max(1, _VIEWS_AT_ONCE // len(views))
