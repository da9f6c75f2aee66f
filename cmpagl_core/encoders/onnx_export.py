"""Writes an image encoder, or a backbone, as an ONNX file, compared with torch before anything uses it (ours)."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cmpagl_core.encoders.backbone_maps import rounded_maps
from cmpagl_core.encoders.image_graph import FEATURES, MAPS, PIXELS, GraphInfo, ImageGraph, MapsGraph
from cmpagl_core.errors import CmpaglError, MismatchError
from cmpagl_core.files import atomic_path
from cmpagl_core.models.backbone import Backbone
from cmpagl_core.models.cmpagl import CmpaglModel
from cmpagl_core.models.kernels.use import plain_layers
from cmpagl_core.runs import LoadedModel

_OPSET = 18
_MOST_DIFFERENT = 1e-4  # of features of unit length, and as a share of a map's largest value


@dataclass(frozen=True)
class Parity:
    """How far ONNX Runtime's features of random images are from torch's."""

    largest_difference: float
    smallest_cosine: float


def export_image_encoder(loaded: LoadedModel, info: GraphInfo, path: Path) -> Parity:
    """Write the image encoder from pixel_values [B, 3, S, S] to features [B, D] of unit length, in fp32.

    Raises MismatchError if its features differ from torch's, CmpaglError for an encoder that ONNX cannot express or if
    writing fails.
    """
    model = plain_layers(copy.deepcopy(loaded.model).cpu()).eval()
    encoder = _ImageHalf(model, info.rounded).eval()
    with atomic_path(path) as partial:
        _write(encoder, info, FEATURES, partial)
        parity = _compare(encoder, ImageGraph(partial, info.model_sha256), info.image_size_px)
        _require_parity(parity.largest_difference, "features")
    return parity


def export_backbone(backbone: Backbone, info: GraphInfo, path: Path) -> None:
    """Write a frozen backbone from pixel_values [B, 3, S, S] to its own maps, flattened to [B, values], in fp32.

    Raises what `export_image_encoder` raises.
    """
    flat = _FlatMaps(plain_layers(copy.deepcopy(backbone).cpu())).eval()
    with atomic_path(path) as partial:
        _write(flat, info, MAPS, partial)
        images = _noise(info.image_size_px)
        with torch.inference_mode():
            expected = flat(images).numpy()
        with MapsGraph(partial, info.model_sha256).running() as maps_of:
            difference = float(np.abs(maps_of(images.numpy(), 0) - expected).max())
        _require_parity(difference / max(float(np.abs(expected).max()), 1e-6), "maps")


def _require_parity(difference: float, what: str) -> None:
    if not difference <= _MOST_DIFFERENT:
        raise MismatchError(
            f"ONNX Runtime's {what} differ from torch's by {difference:.1g}, more than {_MOST_DIFFERENT:g}",
            hint="use torch: uninstall onnxruntime",
        )


class _ImageHalf(nn.Module):
    """pixel_values [B, 3, S, S] to features [B, D]."""

    def __init__(self, model: CmpaglModel, rounded: bool) -> None:
        super().__init__()
        self.model, self.rounded = model, rounded

    def forward(self, pixel_values: Tensor) -> Tensor:
        backbone = self.model.image_encoder.patch_embed
        if self.rounded and isinstance(backbone, Backbone):
            maps = backbone.join(rounded_maps(backbone.parts(pixel_values)))
        else:
            maps = self.model.backbone_maps(pixel_values)
        return self.model.encode_backbone_maps(maps).features


class _FlatMaps(nn.Module):
    """pixel_values [B, 3, S, S] to a backbone's own maps [B, values]."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: Tensor) -> Tensor:
        return torch.cat([part.flatten(1) for part in self.backbone.parts(pixel_values)], dim=1)


def _write(encoder: nn.Module, info: GraphInfo, output: str, path: Path) -> None:
    # By tracing: torch's newer exporter takes ten times as long (20 s for `ucm-cpu` on one core, not 2).
    example = torch.zeros(2, 3, info.image_size_px, info.image_size_px)
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                encoder,
                (example,),
                str(path),
                dynamo=False,
                input_names=[PIXELS],
                output_names=[output],
                dynamic_axes={PIXELS: {0: "images"}, output: {0: "images"}},
                opset_version=_OPSET,
            )
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CmpaglError(f"the image encoder cannot be written as ONNX ({reason})") from error
    _describe(path, info)


def _describe(path: Path, info: GraphInfo) -> None:
    import onnx

    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, info.words)
    onnx.save(graph, path)


def _compare(encoder: nn.Module, graph: ImageGraph, side: int) -> Parity:
    """On another number of images than was traced."""
    images = _noise(side)
    with torch.inference_mode():
        expected = nn.functional.normalize(encoder(images).float(), dim=1).numpy()
    found = graph.features(images.numpy(), 1)
    return Parity(float(np.abs(found - expected).max()), float((found * expected).sum(axis=1).min()))


def _noise(side: int) -> Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
