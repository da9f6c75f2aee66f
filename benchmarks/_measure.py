"""What benchmarks share: a median after a warm-up, works in turns, and one JSON line per measurement."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Self

import torch

from cmpagl_core.device import usable_precision

CPU = torch.device("cpu")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PRECISION = usable_precision(CPU, "bf16")
"""What a recipe's bf16 comes to on this CPU: fp32 where it has no instructions for it. Peers get the same."""
PROFILED = "s profiled"
"""Unit of a line that tells a part of some work's time: `docs/generate.py` puts them into a table of their own."""

Work = Callable[[], object]


def median_s(work: Callable[[], object], repeats: int = 5) -> float:
    """Median wall-clock seconds of `repeats` calls after one that does not count."""
    work()
    taken = []
    for _ in range(repeats):
        started_at = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started_at)
    return statistics.median(taken)


def in_turns_s(ours: Callable[[], object], peer: Callable[[], object], repeats: int = 5) -> tuple[float, float]:
    """Medians of two works done in turns, so that a busy machine slows both alike; the first turn does not count."""
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for work, times in zip((ours, peer), taken, strict=True):
            started_at = time.perf_counter()
            work()
            if turn:
                times.append(time.perf_counter() - started_at)
    return statistics.median(taken[0]), statistics.median(taken[1])


def apart_in_turns_s(makers: Mapping[str, Callable[[], Work]], repeats: int = 5) -> dict[str, float]:
    """As `in_turns_s`, each work in a process of its own, so that none runs under another's settings.

    makers: functions of a module, each called once in its process to make the work.
    """
    with ExitStack() as stack:
        works = {name: stack.enter_context(_Apart(maker)) for name, maker in makers.items()}
        taken = [{name: work.time_s() for name, work in works.items()} for _ in range(repeats + 1)][1:]
    return {name: statistics.median(turn[name] for turn in taken) for name in makers}


class _Apart:
    """A process that does one work when it is told to, and says how long it took."""

    def __init__(self, maker: Callable[[], Work]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(maker, other), daemon=True)

    def time_s(self) -> float:
        self._pipe.send(True)
        taken: float = self._pipe.recv()
        return taken

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(False)
        self._process.join()


def _serve(maker: Callable[[], Work], pipe: Connection) -> None:
    work = maker()
    while pipe.recv():
        started_at = time.perf_counter()
        work()
        pipe.send(time.perf_counter() - started_at)


def compare(name: str, value: float, unit: str, peer: str, peer_value: float, more_is_better: bool = False) -> None:
    """Print a line of JSON with a peer and no bar; a ratio above 1 is better than the peer."""
    _print(name, value, unit, peer, peer_value, ratio=value / peer_value if more_is_better else peer_value / value)


def report(name: str, value: float, unit: str, bar: float, peer: str = "", peer_value: float | None = None) -> bool:
    """Print one line of JSON. Less is better: ratio is peer_value / value, or bar / value without a peer."""
    ratio = (bar if peer_value is None else peer_value) / value
    ok = ratio >= (1.0 if peer_value is None else bar)
    _print(name, value, unit, peer or None, peer_value, ratio, bar, ok)
    return ok


def note(name: str, value: float, unit: str) -> None:
    """Print a line of JSON that has no bar: a rate of the machine, or a share of it."""
    _print(name, value, unit)


def _print(
    name: str,
    value: float,
    unit: str,
    peer: str | None = None,
    peer_value: float | None = None,
    ratio: float | None = None,
    bar: float | None = None,
    ok: bool | None = None,
) -> None:
    print(json.dumps(locals()), flush=True)


def gemm_flops(precision: str, size: int = 2048, device: torch.device = CPU) -> float:
    """Floating-point operations a second of a square matrix product in bf16 or fp32."""
    left, right = (torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(2))

    def product() -> None:
        done = left @ right
        if done.is_cuda:
            torch.cuda.synchronize()

    return 2 * size**3 / median_s(product, repeats=9)


def memory_bytes_s(size: int = 256 << 20) -> float:
    """Bytes a second that a copy larger than the caches reads and writes."""
    source = torch.ones(size, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * size / median_s(lambda: target.copy_(source), repeats=9)
