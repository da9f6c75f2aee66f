"""The device to compute on, and its precision."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from cmpagl_core.errors import UsageError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
_KEPT_BYTES = 2**31 - 1  # mallopt takes an int
_GROWTH_BYTES = 64 << 20

_DEVICES = ("cpu", "cuda", "mps")
_MOST_THREADS = 64
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto", local_rank: int | None = None) -> torch.device:
    """A device by name; "auto" is CUDA, else Apple's MPS, else the CPU. Raises UsageError for a missing device.

    local_rank: the number of this process among several on this machine, of which each has a GPU of its own.
    """
    if local_rank is not None:
        name = _device_of_rank(name, local_rank)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    missing = UsageError(
        f"device {name[:40]!r} is not available here", hint="leave out --device, or run `cmpagl doctor`"
    )
    if name.partition(":")[0] not in _DEVICES:  # torch has other devices that lack the needed operators
        raise missing
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise missing from error
    return device


def _device_of_rank(name: str, local_rank: int) -> str:
    if name not in ("auto", "cuda"):
        return name
    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    if local_rank >= torch.cuda.device_count():
        raise UsageError(
            f"this machine has {torch.cuda.device_count()} GPUs for more processes", hint="start one process per GPU"
        )
    return f"cuda:{local_rank}"


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads; None keeps torch's. Raises UsageError for more than can be started."""
    if threads is None:
        return
    most = max(_MOST_THREADS, 2 * (os.cpu_count() or 1))
    if not 1 <= threads <= most:  # OpenMP would abort the process
        raise UsageError(f"{threads:,} threads are not between 1 and {most}", hint="use as many as there are cores")
    torch.set_num_threads(threads)


def keep_freed_memory() -> bool:
    """Reuse freed memory for the next tensor; False if the C library is not glibc (ours).

    By default glibc returns every large block to the system, which then clears each page of the next one: on two CPU
    cores that took 40 % of a convolutional encoder's time.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEPT_BYTES), (_M_TOP_PAD, _GROWTH_BYTES))
    accepted = [mallopt(name, value) == 1 for name, value in wanted]
    return all(accepted)


def usable_precision(device: torch.device, precision: str) -> str:
    """The effective precision on a device: fp32 if it has no instructions for the recipe's (ours).

    Without them torch emulates half precision: on two cores with AVX2 a bf16 matrix product took 240 times as long as
    one in fp32, which is also more accurate.
    """
    return precision if precision == "fp32" or _computes(device, precision) else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context of a forward pass: torch's autocast to the usable precision, none for fp32."""
    usable = usable_precision(device, precision)
    return nullcontext() if usable == "fp32" else torch.autocast(device_type=device.type, dtype=_DTYPES[usable])


@cache
def _computes(device: torch.device, precision: str) -> bool:
    if device.type == "cpu":
        instructions = f"_is_mkldnn_{precision}_supported"
        return hasattr(torch.ops.mkldnn, instructions) and bool(getattr(torch.ops.mkldnn, instructions)())
    if device.type == "cuda" and precision == "bf16":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return True
