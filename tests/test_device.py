"""How the processor's memory is used, and its instructions for half precision."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from cmpagl_core import device
from cmpagl_core.device import autocast, choose_device, usable_precision
from cmpagl_core.errors import UsageError

CPU = torch.device("cpu")
_PAGE_FAULTS = """
import resource, torch
from cmpagl_core.device import keep_freed_memory
torch.set_num_threads(1)
def work():
    for _ in range(10):
        torch.empty(8 << 20).fill_(1.0)  # 32 MiB, larger than glibc ever keeps of itself
def faults():
    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
plain = faults()
assert keep_freed_memory()
print(plain, faults())
"""


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """What the processor can do is asked once a process."""
    device._computes.cache_clear()
    yield
    device._computes.cache_clear()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
def test_kept_memory_is_not_cleared_anew_for_every_tensor() -> None:
    done = subprocess.run([sys.executable, "-c", _PAGE_FAULTS], capture_output=True, text=True, check=True)
    plain, kept = (int(faults) for faults in done.stdout.split())
    assert kept * 10 < plain


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("there", [True, False])
def test_half_precision_is_taken_where_the_processor_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, precision: str, there: bool
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{precision}_supported", lambda: there)
    assert usable_precision(CPU, precision) == (precision if there else "fp32")
    with autocast(CPU, precision):
        assert torch.is_autocast_enabled("cpu") == there


@pytest.mark.usefixtures("asked_anew")
def test_a_torch_without_onednn_computes_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert usable_precision(CPU, "bf16") == "fp32"


def test_fp32_is_taken_everywhere() -> None:
    assert usable_precision(torch.device("meta"), "fp32") == "fp32"
    with autocast(CPU, "fp32"):
        assert not torch.is_autocast_enabled("cpu")


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu", local_rank=1) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", local_rank=1) == CPU  # never MPS, which processes cannot share
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    assert choose_device("auto", local_rank=1) == torch.device("cuda:1")
    with pytest.raises(UsageError, match="this machine has 2 GPUs for more processes"):
        choose_device("cuda", local_rank=2)
