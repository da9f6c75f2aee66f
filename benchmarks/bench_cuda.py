"""Gswin-T against timm's Swin-T on a CUDA device, bf16 autocast, 224 px: encoding and training, 256 images.

So many that the device and not the launching of its kernels is measured; where they do not fit, half as many.
Both sides eager, or with --compiled both under torch.compile. Images a second, and the peak memory of each alone.
Without such a device it prints nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from _measure import compare, gemm_flops, note
from bench_image_encoder import PEER, SIZE_PX, check, encode, encoders, training_step
from torch import nn

from cmpagl_core.models.kernels.use import use_kernels

IMAGES = 256
WORKS = ("encode", "train")
NAMES = {True: "Gswin-T, with its global window", False: "Gswin-T, global window off"}
_PEER = "timm swin_tiny_patch4_window7_224"

Work = Callable[[], object]


def synchronize(device: torch.device) -> None:
    """Wait for the device to have done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def ready(name: str, device: torch.device, compiled: bool) -> nn.Module:
    """One of `NAMES` or the peer, on the device, its weights and speed apart from the others'."""
    window = next((window for window, known in NAMES.items() if known == name), True)
    ours, peer = encoders(window)
    model = use_kernels(peer if name == _PEER else ours, device)
    done: nn.Module = torch.compile(model) if compiled else model
    return done


def make(work: str, model: nn.Module, pixel_values: torch.Tensor) -> Work:
    """What is timed: a call that does the work with all of the images."""
    if work == "encode":
        return partial(encode, model.eval(), pixel_values)
    return training_step(model.train(), pixel_values)


def peak_bytes(work: Work, before: int, device: torch.device) -> int:
    """Of one call after two that do not count (the first compiles); before: what was allocated without the model."""
    for _ in range(2):
        work()
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before


def in_turns_s(works: Sequence[Work], device: torch.device, repeats: int = 5) -> list[float]:
    """Median of each work's seconds, all done in turns."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, times in zip(works, taken, strict=True):
            synchronize(device)
            started_at = time.perf_counter()
            work()
            synchronize(device)
            times.append(time.perf_counter() - started_at)
    return [statistics.median(times) for times in taken]


def measure(work: str, compiled: bool, device: torch.device, images: int) -> None:
    """Print seconds, images a second and peak memory of ours, with and without the global window, and the peer's."""
    pixel_values = torch.randn(images, 3, SIZE_PX, SIZE_PX, device=device)
    names = (*NAMES.values(), _PEER)
    works, peaks = [], []
    for name in names:
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        works.append(make(work, ready(name, device, compiled), pixel_values))
        peaks.append(peak_bytes(works[-1], before, device))
    seconds = in_turns_s(works, device)
    how = "compiled" if compiled else "eager"
    doing = "encode {} images" if work == "encode" else "training step, batch {}"
    peer = PEER.replace("eager", how)
    for name, taken, peak in zip(names[:-1], seconds, peaks, strict=False):
        title = f"{doing.format(images)} on {device.type.upper()}, {name}, bf16, {how}"
        compare(title, taken, "s", peer, seconds[-1])
        compare(f"{title}: images a second", images / taken, "images/s", peer, images / seconds[-1], True)
        if peak:
            compare(f"{title}: peak memory", peak / 2**20, "MiB", peer, peaks[-1] / 2**20)


def measure_what_fits(work: str, compiled: bool, device: torch.device, images: int) -> None:
    """As `measure`, with half as many images whenever the device's memory is too small."""
    while True:
        try:
            measure(work, compiled, device, images)
            return
        except torch.cuda.OutOfMemoryError:
            if images < 2:
                raise
            images //= 2
            print(f"out of memory: {images} images instead", file=sys.stderr)
        torch.cuda.empty_cache()


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", choices=WORKS, help="only this (default: both)")
    parser.add_argument("--compiled", action="store_true", help="under torch.compile, both sides")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--device", default="cuda", help="cpu rehearses it")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the device's rate, then what each encoder reaches on it."""
    asked = options(argv)
    device = torch.device(asked.device)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            print("no CUDA device is here: nothing to measure", file=sys.stderr)
            return
        rate = gemm_flops("bf16", 8192, device)
        note(f"bf16 matrix products of {torch.cuda.get_device_name()}", rate / 1e9, "GFLOP/s")
    for window in NAMES:
        check(*(model.eval() for model in encoders(window)), torch.randn(4, 3, SIZE_PX, SIZE_PX))
    for work in (asked.work,) if asked.work else WORKS:
        measure_what_fits(work, asked.compiled, device, asked.images)


if __name__ == "__main__":
    main()
