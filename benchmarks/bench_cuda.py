"""Gswin-T against timm's Swin-T on a CUDA device, eager, bf16 autocast, 224 px: encoding and training, 256 images.

So many that the device and not the launching of its kernels is measured. Without such a device it prints nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from _measure import compare, gemm_flops, in_turns_s, note
from bench_image_encoder import PEER, SIZE_PX, check, encode, encoders, training_step

from cmpagl_core.models.kernels.use import use_kernels

IMAGES = 256


def finished(work: Callable[[], object]) -> Callable[[], None]:
    """The work, and waiting for the device to have done it."""

    def run() -> None:
        work()
        torch.cuda.synchronize()

    return run


def main() -> None:
    """Print the device's rate, then what each encoder reaches on it."""
    if not torch.cuda.is_available():
        print("no CUDA device is here: nothing to measure", file=sys.stderr)
        return
    device = torch.device("cuda")
    note(f"bf16 matrix products of {torch.cuda.get_device_name()}", gemm_flops("bf16", 8192, device) / 1e9, "GFLOP/s")
    pixel_values = torch.randn(IMAGES, 3, SIZE_PX, SIZE_PX, device=device)
    for global_window in (True, False):
        models = [model.eval() for model in encoders(global_window)]
        check(*models, torch.randn(4, 3, SIZE_PX, SIZE_PX))
        models = [use_kernels(model, device) for model in models]
        name = "Gswin-T, " + ("with its global window" if global_window else "global window off")
        ours_s, peer_s = in_turns_s(*(finished(partial(encode, model, pixel_values)) for model in models))
        compare(f"encode {IMAGES} images on CUDA, {name}, bf16", ours_s, "s", PEER, peer_s)
        ours_s, peer_s = in_turns_s(*(finished(training_step(model.train(), pixel_values)) for model in models))
        compare(f"training step on CUDA, batch {IMAGES}, {name}, bf16", ours_s, "s", PEER, peer_s)


if __name__ == "__main__":
    main()
