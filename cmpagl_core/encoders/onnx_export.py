"""Writes a run's image encoder as an ONNX file, compared with the run before anything uses it (ours)."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cmpagl_core.encoders.backbone_cache import rounded_maps
from cmpagl_core.encoders.image_graph import FEATURES, PIXELS, GraphInfo, ImageGraph
from cmpagl_core.errors import CmpaglError, MismatchError
from cmpagl_core.files import atomic_path
from cmpagl_core.models.backbone import Backbone
from cmpagl_core.models.cmpagl import CmpaglModel
from cmpagl_core.models.kernels.use import plain_layers
from cmpagl_core.runs import LoadedModel

_OPSET = 18
_MOST_DIFFERENT = 1e-4  # of features of unit length


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
    side = info.image_size_px
    with atomic_path(path) as partial:
        try:
            _write(encoder, torch.zeros(2, 3, side, side), partial)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CmpaglError(f"the image encoder cannot be written as ONNX ({reason})") from error
        _describe(partial, info)
        parity = _compare(encoder, ImageGraph(partial, info.model_sha256), side)
        if not parity.largest_difference <= _MOST_DIFFERENT:
            raise MismatchError(
                f"ONNX Runtime's features differ from torch's by {parity.largest_difference:.1g}, more than "
                f"{_MOST_DIFFERENT:g}",
                hint="use torch: uninstall onnxruntime",
            )
    return parity


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


def _write(encoder: nn.Module, example: Tensor, path: Path) -> None:
    # By tracing: torch's newer exporter takes ten times as long (20 s for `ucm-cpu` on one core, not 2).
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            encoder,
            (example,),
            str(path),
            dynamo=False,
            input_names=[PIXELS],
            output_names=[FEATURES],
            dynamic_axes={PIXELS: {0: "images"}, FEATURES: {0: "images"}},
            opset_version=_OPSET,
        )


def _describe(path: Path, info: GraphInfo) -> None:
    import onnx

    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, info.words)
    onnx.save(graph, path)


def _compare(encoder: nn.Module, graph: ImageGraph, side: int) -> Parity:
    """On another number of images than was traced."""
    images = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = nn.functional.normalize(encoder(images).float(), dim=1).numpy()
    found = graph.features(images.numpy(), 1)
    return Parity(float(np.abs(found - expected).max()), float((found * expected).sum(axis=1).min()))
