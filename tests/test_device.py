"""How the processor's memory is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PAGE_FAULTS = """
import resource, sys, torch
from cmpagl_core.device import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def work():
    for _ in range(20):
        torch.empty(8 << 20).fill_(1.0)  # 32 MiB, larger than glibc ever keeps of itself
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is Linux's")
def test_kept_memory_is_not_cleared_anew_for_every_tensor() -> None:
    def page_faults(mode: str) -> int:
        done = subprocess.run([sys.executable, "-c", _PAGE_FAULTS, mode], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert page_faults("keep") * 10 < page_faults("plain")
