"""Gswin-T against timm's Swin-T, eager, 224 px: encoding 32 images, and a training step of 16.

Under bf16 autocast, both, where the processor has instructions for it; in fp32 elsewhere.
Each in a process of its own, under the settings that its users get: ours keeps freed memory, which the peer's users
may also ask of glibc, and a line beside says what that gives them. Before them what the machine can do: its
matrix products, its memory; and after them the encoder's share of the first, where the time of a training step goes,
as torch's profiler sees it, and how much its other operators than matrix products read and write: what either takes at
the machine's rates, no rewriting of single operators can save.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Literal, NamedTuple, get_args

import timm
import torch
import torch.nn.functional as F
from _measure import CPU, PRECISION, PROFILED, apart_in_turns_s, gemm_flops, memory_bytes_s, note, report
from _traffic import Traffic
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from cmpagl_core.device import autocast, keep_freed_memory
from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.recipe import ImageEncoderPart

PEER = "timm swin_tiny_patch4_window7_224, eager"
ENCODED, TRAINED, SIZE_PX = 32, 16, 224
Which = Literal["ours", "peer", "peer, freed memory kept"]
KINDS = {  # of torch's operators; on a CPU a linear layer in bf16 is a convolution
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "mkldnn_convolution"),
    "convolutions' backward": ("convolution_backward",),
    "copies and casts": ("copy_", "index_select", "cat"),
    "GELU": ("gelu", "gelu_backward"),
    "layer norms": ("native_layer_norm", "native_layer_norm_backward"),
    "softmax": ("_softmax", "_softmax_backward_data"),
    "optimiser": ("_fused_adamw_",),
}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution")  # as they are called, before one is chosen for the CPU
REST = "sums, products by element and the rest"
WARM_UP_STEPS, PROFILED_STEPS = 2, 3
BARS = {True: (1.25, 1.0), False: (1.5, 1.2)}  # with the global window and without: encoding, training


class Taken(NamedTuple):
    """Seconds of ours, and whether that meets the bar."""

    seconds: float
    met: bool


def encoders(global_window: bool) -> tuple[GswinEncoder, nn.Module]:
    """Ours with the peer's weights and drop path; with its gate at zero the global window changes nothing."""
    torch.manual_seed(0)
    peer = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, num_classes=0)
    cfg = ImageEncoderPart(size="tiny", global_window=global_window, drop_path=0.1)
    ours = use_kernels(GswinEncoder(cfg, SIZE_PX), CPU)
    state = {name: value for name, value in peer.state_dict().items() if name in ours.state_dict()}
    renamed = ours.load_state_dict(state, strict=False)
    left = [name for name in renamed.missing_keys if "global_branch" not in name and "generator" not in name]
    if left:
        raise SystemExit(f"the peer has no weights for {left[0]}")
    return ours, peer


def encode(model: nn.Module, pixel_values: Tensor) -> Tensor:
    with torch.inference_mode(), autocast(pixel_values.device, "bf16"):
        out: Tensor = model(pixel_values)
    return out


def check(ours: GswinEncoder, peer: nn.Module, pixel_values: Tensor) -> None:
    """Raises SystemExit unless ours is the peer in fp32, and bf16 is within its rounding."""
    with torch.inference_mode():
        exact, expected = ours(pixel_values)[:, 0], peer.forward_features(pixel_values).flatten(1, 2).mean(dim=1)
    if float((exact - expected).abs().max()) > 1e-4:
        raise SystemExit("not the peer's features in fp32")
    if float(F.cosine_similarity(encode(ours, pixel_values)[:, 0].float(), exact).min()) < 0.999:
        raise SystemExit("half precision is further from fp32 than its rounding")


def training_step(model: nn.Module, pixel_values: Tensor) -> Callable[[], None]:
    """Forward, backward and AdamW, fused as `cmpagl train` has it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(pixel_values.device, "bf16"):
            loss = model(pixel_values).float().square().mean()
        loss.backward()
        optimizer.step()

    return step


def flops(model: nn.Module, pixel_values: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():  # in inference mode the counter trips over a parameter passed to a module
        model(pixel_values[:1])
    return int(counter.get_total_flops()) * len(pixel_values)


def make_encoding(global_window: bool, which: Which) -> Callable[[], object]:
    """The work of a process: encode 32 images, under the settings that users of `which` get."""
    model = _ready(global_window, which).eval()
    pixel_values = torch.randn(ENCODED, 3, SIZE_PX, SIZE_PX)
    return lambda: encode(model, pixel_values)


def make_training(global_window: bool, which: Which) -> Callable[[], None]:
    """The work of a process: a training step of 16 images, under the settings that users of `which` get."""
    model = _ready(global_window, which).train()
    return training_step(model, torch.randn(TRAINED, 3, SIZE_PX, SIZE_PX))


def _ready(global_window: bool, which: Which) -> nn.Module:
    torch.set_num_threads(2)
    if which != "peer":
        keep_freed_memory()  # as every command of ours begins on a CPU
    ours, peer = encoders(global_window)
    return ours if which == "ours" else peer


def measure(title: str, make: Callable[[bool, Which], Callable[[], object]], global_window: bool, bar: float) -> Taken:
    """Print ours against the peer, and beside it the peer with the allocator's setting that ours has by default."""
    times = apart_in_turns_s({which: partial(make, global_window, which) for which in get_args(Which)})
    met = report(title, times["ours"], "s", bar, PEER, times["peer"])
    note(f"{title}: the peer with freed memory kept, as ours has it", times["peer, freed memory kept"], "s")
    return Taken(times["ours"], met)


def kinds_s(step: Callable[[], object]) -> dict[str, float]:
    """Seconds that each kind of operator takes of a training step, as torch's profiler sees them.

    Of a few steps the quickest: one that other work slowed down tells little of where its own time goes.
    """
    for _ in range(WARM_UP_STEPS):
        step()
    return min((_profiled_s(step) for _ in range(PROFILED_STEPS)), key=lambda taken: sum(taken.values()))


def _profiled_s(step: Callable[[], object]) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    kind_of = {f"aten::{name}": kind for kind, names in KINDS.items() for name in names}
    taken = dict.fromkeys((*KINDS, REST), 0.0)
    for event in profiled.key_averages():
        taken[kind_of.get(event.key, REST)] += event.self_cpu_time_total / 1e6
    return taken


def _training_kinds_s(global_window: bool, which: Which) -> dict[str, float]:
    return kinds_s(make_training(global_window, which))


def note_kinds(title: str, global_window: bool, which: Which) -> None:
    """Print where the time of a training step goes, in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        taken = pool.submit(_training_kinds_s, global_window, which).result()
    for kind, seconds in taken.items():
        note(f"{title}: {kind}", seconds, PROFILED)


def note_traffic(title: str, global_window: bool, which: Which) -> None:
    """Print what the operators of a training step read and write beside its matrix products."""
    step = make_training(global_window, which)
    with Traffic(but=PRODUCTS) as traffic:
        step()
    note(f"{title}: read and written beside matrix products", traffic.bytes / 1e9, "GB")


def main() -> int:
    """Print the machine's rates, then what each encoder reaches."""
    torch.set_num_threads(2)
    rate = gemm_flops(PRECISION)
    note(f"{PRECISION} matrix products of this machine", rate / 1e9, "GFLOP/s")
    note("memory of this machine, read and written by a copy", memory_bytes_s() / 1e9, "GB/s")
    pixel_values = torch.randn(4, 3, SIZE_PX, SIZE_PX)
    done = []
    for global_window in (True, False):
        ours, peer = (model.eval() for model in encoders(global_window))
        check(ours, peer, pixel_values)
        name = "Gswin-T, " + ("with its global window" if global_window else "global window off")
        encoding_bar, training_bar = BARS[global_window]
        encoding = measure(f"encode {ENCODED} images, {name}, {PRECISION}", make_encoding, global_window, encoding_bar)
        share = flops(ours, pixel_values) * ENCODED / len(pixel_values) / encoding.seconds / rate
        note(f"{name}: share of the {PRECISION} matrix rate", share, "of 1")
        title = f"training step, batch {TRAINED}, {name}, {PRECISION}"
        training = measure(title, make_training, global_window, training_bar)
        note_kinds(title, global_window, "ours")
        note_traffic(title, global_window, "ours")
        done += [encoding.met, training.met]
    title = f"training step, batch {TRAINED}, the peer, {PRECISION}"
    note_kinds(title, False, "peer, freed memory kept")
    note_traffic(title, False, "peer")
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
