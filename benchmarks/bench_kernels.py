"""What each kernel of `models/kernels/` gains alone: Gswin-T with it against plain layers, encoding and training.

The last rows have all of them together. Attention of captions is measured by `bench_attention.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Collection

import torch
from _measure import CPU, PRECISION, compare, in_turns_s
from bench_image_encoder import SIZE_PX, encode, training_step
from torch import nn

from cmpagl_core.device import keep_freed_memory
from cmpagl_core.models.backbone import Backbone
from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.models.kernels.use import KERNELS, use_kernels
from cmpagl_core.recipe import ImageEncoderPart

ENCODED, TRAINED = 16, 8
PEER = "plain layers"
LAYERS = [layer for layer in KERNELS["cpu"] if layer is not Backbone]  # of which Swin's patch embedding has none


def encoder(layers: Collection[type[nn.Module]]) -> GswinEncoder:
    """Gswin-T with its global window, and kernels for these layers alone; its weights are always the same."""
    torch.manual_seed(0)
    built = use_kernels(GswinEncoder(ImageEncoderPart(size="tiny", drop_path=0.1), SIZE_PX), CPU)
    plain = {kernel: layer for layer, kernel in KERNELS["cpu"].items() if layer not in layers}
    for module in built.modules():
        module.__class__ = plain.get(type(module), type(module))
    return built


def measure(name: str, layers: Collection[type[nn.Module]]) -> None:
    """Print two lines: encoding, and a training step."""
    ours, peer = encoder(layers).eval(), encoder(()).eval()
    pixel_values = torch.randn(ENCODED, 3, SIZE_PX, SIZE_PX)
    taken = in_turns_s(lambda: encode(ours, pixel_values), lambda: encode(peer, pixel_values))
    compare(f"encode {ENCODED} images, Gswin-T, {name}, {PRECISION}", taken[0], "s", PEER, taken[1])
    steps = (training_step(model.train(), pixel_values[:TRAINED]) for model in (ours, peer))
    taken = in_turns_s(*steps)
    compare(f"training step, batch {TRAINED}, Gswin-T, {name}, {PRECISION}", taken[0], "s", PEER, taken[1])


def main() -> int:
    torch.set_num_threads(2)
    keep_freed_memory()  # as every command of ours begins on a CPU
    for layer in LAYERS:
        measure(f"{KERNELS['cpu'][layer].__name__} alone", (layer,))
    measure("all kernels", LAYERS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
