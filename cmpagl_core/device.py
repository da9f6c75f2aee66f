"""Which processor to compute on, and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from cmpagl_core.errors import UsageError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" takes CUDA, then Apple's MPS, then the CPU. Raises UsageError if it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {name!r} is not available here", hint="leave --device out, or see `cmpagl doctor`"
        ) from error
    return device


def set_threads(threads: int | None) -> None:
    """Use so many CPU threads; None leaves torch's choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context in which a forward pass runs: nothing for fp32, else torch's autocast."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device_type=device.type, dtype=_DTYPES[precision])
