"""Pictures decoded in the background, in order and in bounded memory, while the encoder works on the last batch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cmpagl_core.errors import DataError

Decode = Callable[[Path], Tensor]

_BATCHES_AHEAD = 3
_MAX_WORKERS = 8


@dataclass(frozen=True)
class Broken:
    """A picture that could not be read, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class DecodedBatch:
    """The readable pictures of up to `batch_size` paths: their rows, and pixel_values [B, 3, S, S]."""

    rows: list[int]
    pixel_values: Tensor
    broken: list[Broken]


def decoded_batches(
    paths: Sequence[Path], decode: Decode, batch_size: int, workers: int | None = None
) -> Iterator[DecodedBatch]:
    """Decode all paths in order on background threads, at most three batches ahead of the caller.

    decode: one path to [3, S, S]; its DataError makes the picture a broken one, other errors are raised.
    A batch in which no picture is readable has pixel_values of length 0.
    """
    threads = min(_MAX_WORKERS, os.cpu_count() or 1) if workers is None else workers
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[tuple[int, Future[Tensor | Broken]]] = deque()
    rows = iter(range(len(paths)))

    def refill() -> None:
        while len(waiting) < _BATCHES_AHEAD * batch_size and (row := next(rows, None)) is not None:
            waiting.append((row, pool.submit(_decode_one, decode, paths[row])))

    try:
        refill()
        while waiting:
            batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
            done = [(row, future.result()) for row, future in batch]
            refill()
            yield _batch(done)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode_one(decode: Decode, path: Path) -> Tensor | Broken:
    try:
        return decode(path)
    except DataError as error:
        return Broken(path, str(error))


def _batch(done: Sequence[tuple[int, Tensor | Broken]]) -> DecodedBatch:
    readable = [(row, one) for row, one in done if isinstance(one, Tensor)]
    return DecodedBatch(
        rows=[row for row, _ in readable],
        pixel_values=torch.stack([one for _, one in readable]) if readable else torch.empty(0),
        broken=[one for _, one in done if isinstance(one, Broken)],
    )
