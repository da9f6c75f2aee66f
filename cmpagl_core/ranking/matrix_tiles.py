"""Processes the rows of a tile in pieces that fit the CPU cache, on all threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_PIECE_ELEMENTS = 1 << 16  # 512 KiB of float64


def over_rows(rows: int, width: int, work: Callable[[slice], None]) -> None:
    """Call `work` with slices that cover range(rows), in threads; numpy releases the GIL.

    Pieces must not touch each other's rows, so that the result cannot depend on the number of threads.
    """
    step = max(1, _PIECE_ELEMENTS // max(1, width))
    pieces = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    threads = min(torch.get_num_threads(), len(pieces))
    if threads <= 1:
        for piece in pieces:
            work(piece)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, pieces):
            pass
