"""Gswin-T against timm's Swin-T, eager, bf16 autocast, 224 px: encoding 32 pictures, and a training step of 16.

Beside them what the machine can do: its bf16 matrix products, its memory, and the encoder's share of the first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from _measure import gemm_flops, in_turns_s, memory_bytes_s, note, report
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.recipe import ImageEncoderPart

PEER = "timm swin_tiny_patch4_window7_224, eager"
ENCODED, TRAINED, SIZE_PX = 32, 16, 224
BARS = {True: (1.25, 1.0), False: (1.5, 1.2)}  # with the global window and without: encoding, training


def encoders(global_window: bool) -> tuple[GswinEncoder, nn.Module]:
    """Ours with the peer's weights and drop path; with its gate at zero the global window changes nothing."""
    torch.manual_seed(0)
    peer = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, num_classes=0)
    ours = GswinEncoder(ImageEncoderPart(size="tiny", global_window=global_window, drop_path=0.1), SIZE_PX)
    state = {name: value for name, value in peer.state_dict().items() if name in ours.state_dict()}
    renamed = ours.load_state_dict(state, strict=False)
    left = [name for name in renamed.missing_keys if "global_branch" not in name and "generator" not in name]
    if left:
        raise SystemExit(f"the peer has no weights for {left[0]}")
    return ours, peer


def encode(model: nn.Module, pixel_values: Tensor) -> Tensor:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        out: Tensor = model(pixel_values)
    return out


def check(ours: GswinEncoder, peer: nn.Module, pixel_values: Tensor) -> None:
    """Raises SystemExit unless ours is the peer in fp32, and bf16 is within its rounding."""
    with torch.inference_mode():
        exact, expected = ours(pixel_values)[:, 0], peer.forward_features(pixel_values).flatten(1, 2).mean(dim=1)
    if float((exact - expected).abs().max()) > 1e-4:
        raise SystemExit("not the peer's features in fp32")
    if float(F.cosine_similarity(encode(ours, pixel_values)[:, 0].float(), exact).min()) < 0.999:
        raise SystemExit("bf16 is further from fp32 than its rounding")


def training_step(model: nn.Module, pixel_values: Tensor) -> Callable[[], None]:
    """Forward, backward and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(pixel_values).float().square().mean()
        loss.backward()
        optimizer.step()

    return step


def flops(model: nn.Module, pixel_values: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model(pixel_values[:1])
    return int(counter.get_total_flops()) * len(pixel_values)


def main() -> int:
    """Print the machine's rates, then two lines for each encoder."""
    torch.set_num_threads(2)
    rate = gemm_flops()
    note("bf16 matrix products of this machine", rate / 1e9, "GFLOP/s")
    note("memory of this machine, read and written by a copy", memory_bytes_s() / 1e9, "GB/s")
    pixel_values = torch.randn(ENCODED, 3, SIZE_PX, SIZE_PX)
    done = []
    for global_window in (True, False):
        ours, peer = (model.eval() for model in encoders(global_window))
        check(ours, peer, pixel_values[:4])
        name = "Gswin-T, " + ("with its global window" if global_window else "global window off")
        encoding_bar, training_bar = BARS[global_window]
        value, peer_value = in_turns_s(lambda o=ours: encode(o, pixel_values), lambda p=peer: encode(p, pixel_values))
        done.append(report(f"encode {ENCODED} pictures, {name}, bf16", value, "s", encoding_bar, PEER, peer_value))
        note(f"{name}: share of the bf16 matrix rate", flops(ours, pixel_values) / value / rate, "of 1")
        steps = [training_step(model.train(), pixel_values[:TRAINED]) for model in (ours, peer)]
        value, peer_value = in_turns_s(*steps)
        done.append(report(f"training step, batch {TRAINED}, {name}, bf16", value, "s", training_bar, PEER, peer_value))
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
