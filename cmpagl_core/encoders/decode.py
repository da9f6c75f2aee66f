"""Decodes images in the background, in order and in bounded memory, while the encoder works on the last batch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from cmpagl_core.files import FileStamp
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.reader import read_image
from cmpagl_core.imagery.room import DECODING
from cmpagl_core.imagery.scene_pool import SCENES
from cmpagl_core.imagery.stamps import Broken

if TYPE_CHECKING:  # an image query that ONNX Runtime encodes needs none
    from torch import Tensor

_BATCHES_AHEAD = 3
_MAX_WORKERS = 8


@dataclass(frozen=True)
class Decoded:
    """One image as encoder input, [3, S, S], and the stamp of the decoded content."""

    pixel_values: Any  # a Tensor, or for ONNX Runtime an array
    stamp: FileStamp


@dataclass(frozen=True)
class DecodedBatch:
    """The readable images of up to `batch_size`: their rows and stamps, and pixel_values [B, 3, S, S]."""

    rows: list[int]
    stamps: list[FileStamp]
    pixel_values: Any  # as of one image
    broken: list[Broken]


Decode = Callable[[ImageRef], Decoded | Broken]


def image_decoder(transform: Callable[[Image], Any], at_least_px: int | None = None) -> Decode:
    """From an image to what a transform makes of its pixels; at_least_px: as in `open_image`."""

    def decode(ref: ImageRef) -> Decoded | Broken:
        with DECODING.held():
            return read(ref)

    def read(ref: ImageRef) -> Decoded | Broken:
        seen = read_image(ref, at_least_px)
        return seen if isinstance(seen, Broken) else Decoded(transform(seen.pixels), seen.stamp)

    return decode


def stacked(images: Sequence[Tensor]) -> Tensor:
    """[B, 3, S, S]; of length 0 where there are none."""
    import torch

    return torch.stack(list(images)) if images else torch.empty(0)


def decoded_batches(
    images: Sequence[ImageRef],
    decode: Decode,
    batch_size: int,
    workers: int | None = None,
    stack: Callable[[Sequence[Any]], Any] = stacked,
) -> Generator[DecodedBatch, None, None]:
    """Decode all images in order on background threads, at most three batches ahead of the caller.

    stack: from the pixel values of several images to those of a batch.
    A batch in which no image is readable has pixel_values of length 0.
    """
    threads = min(_MAX_WORKERS, os.cpu_count() or 1) if workers is None else workers
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[tuple[int, Future[Decoded | Broken]]] = deque()
    rows = iter(range(len(images)))

    def refill() -> None:
        while len(waiting) < _BATCHES_AHEAD * batch_size and (row := next(rows, None)) is not None:
            waiting.append((row, pool.submit(decode, images[row])))

    try:
        refill()
        while waiting:
            batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
            done = [(row, future.result()) for row, future in batch]
            refill()
            yield _batch(done, stack)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        SCENES.close()


def _batch(done: Sequence[tuple[int, Decoded | Broken]], stack: Callable[[Sequence[Any]], Any]) -> DecodedBatch:
    readable = [(row, one) for row, one in done if isinstance(one, Decoded)]
    return DecodedBatch(
        rows=[row for row, _ in readable],
        stamps=[one.stamp for _, one in readable],
        pixel_values=stack([one.pixel_values for _, one in readable]),
        broken=[one for _, one in done if isinstance(one, Broken)],
    )
