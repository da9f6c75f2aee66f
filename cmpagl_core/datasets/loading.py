"""Batches of image-caption pairs: random choices, positives, and prefetching of images.

All randomness derives from (seed, epoch, row), never from order, worker or clock, so any batch of any epoch can be
reproduced.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Resampling
from torch import Tensor

from cmpagl_core.datasets.augment import allowed_views, d4_transform
from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.datasets.same_caption import caption_key, numbered
from cmpagl_core.errors import CmpaglError, DataError, UsageError
from cmpagl_core.imagery.images import decoded_px, normalised, open_image, to_pixel_values, to_square
from cmpagl_core.imagery.room import DECODING
from cmpagl_core.ranks import ALONE, Ranks
from cmpagl_core.recipe_data import DataPart

_BATCHES_AHEAD = 2
_KEPT_BYTES = 3 << 29  # 1.5 GiB hold the train images of RSICD and UCM at 224 px
_ORDER_STREAM = 1  # separates the order of an epoch from the choices for its samples
_SAMPLE_STREAM = 2

CropBox = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the image."""
WHOLE: CropBox = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Draw:
    """The random choices for one pair: row of its image, row of its caption, view and crop."""

    row: int
    caption: int
    view: int
    box: CropBox


@dataclass(frozen=True)
class JointBatch:
    """The batch of all processes of a training, of which a PairBatch is one process's part."""

    sizes: tuple[int, ...]  # pairs of each process; N together
    first: int  # the part's first pair
    text_positives: Tensor  # [b, N] bool, own captions x all images


@dataclass(frozen=True)
class PairBatch:
    """B pairs as model input; row i of the images belongs to row i of the captions.

    In a training of several processes it is a part of a joint batch, and its positives are own images x all captions.
    """

    images: Tensor  # pixel_values [B, 3, S, S], or a frozen backbone's maps, flattened: [B, values]
    input_ids: Tensor  # [B, L] int64
    attention_mask: Tensor  # [B, L] bool
    positives: Tensor  # [B, B] bool, images x captions: caption j is one of image i's, drawn or not
    captions: tuple[str, ...]
    joint: JointBatch | None = None

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def joint_pairs(self) -> int:
        """Pairs of all processes."""
        return len(self) if self.joint is None else sum(self.joint.sizes)

    def to(self, device: torch.device) -> PairBatch:
        """The same pairs on another device."""
        if device.type == "cpu":
            return self
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            positives=self.positives.to(device, non_blocking=True),
            joint=None
            if self.joint is None
            else replace(self.joint, text_positives=self.joint.text_positives.to(device, non_blocking=True)),
        )


class Tokens(Protocol):
    """The output of a tokenizer."""

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def attention_mask(self) -> Tensor: ...


class ImageSource(Protocol):
    """The source of a batch's images: files, or a cache of a frozen backbone's maps."""

    def gather(self, draws: Sequence[Draw]) -> Tensor:
        """Images of these draws, stacked in their order: float32 [B, ...]."""


@dataclass(frozen=True)
class ImageFiles:
    """Decodes images on every request, crops them, resizes them to a square and applies the view."""

    split: DataSplit
    image_size_px: int

    def gather(self, draws: Sequence[Draw]) -> Tensor:
        return torch.stack([self._pixel_values(draw) for draw in draws])  # [B, 3, S, S]

    def _pixel_values(self, draw: Draw) -> Tensor:
        with DECODING.held():
            return self._decoded(draw)

    def _decoded(self, draw: Draw) -> Tensor:
        left, top, right, bottom = draw.box
        at_least_px = decoded_px(self.image_size_px, min(right - left, bottom - top))
        image = open_image(self.split.paths[draw.row], at_least_px=at_least_px, reading=self.split.reading)
        if draw.box != WHOLE:
            box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
            image = image.resize((self.image_size_px, self.image_size_px), Resampling.BICUBIC, box=box)
        return d4_transform(to_pixel_values(image, self.image_size_px), draw.view)


class KeptImages:
    """Whole images decoded once and kept in memory as bytes: 3 S S for each, so 10,000 at 128 px take 0.5 GB.

    Gives what `ImageFiles` gives without crops, to the bit. Filled as images are asked for, by any number of threads.
    """

    def __init__(self, paths: Sequence[Path], image_size_px: int) -> None:
        self._paths, self._image_size_px = paths, image_size_px
        self._squares = np.empty((len(paths), image_size_px, image_size_px, 3), dtype=np.uint8)  # untouched: no memory
        self._there = np.zeros(len(paths), dtype=bool)

    @staticmethod
    def fit(count: int, image_size_px: int) -> bool:
        """Whether so many images may be kept: within 1.5 GiB."""
        return 3 * image_size_px**2 * count <= _KEPT_BYTES

    def gather(self, draws: Sequence[Draw]) -> Tensor:
        return torch.stack([d4_transform(self.pixel_values(draw.row), draw.view) for draw in draws])  # [B, 3, S, S]

    def pixel_values(self, row: int) -> Tensor:
        """One image, upright: float32 [3, S, S]. Raises DataError when it cannot be read."""
        if not self._there[row]:
            with DECODING.held():
                image = open_image(self._paths[row], at_least_px=decoded_px(self._image_size_px))
                self._squares[row] = to_square(image, self._image_size_px)
            self._there[row] = True
        return normalised(self._squares[row])


def image_source(split: DataSplit, cfg: DataPart) -> ImageSource:
    """A split's images for training: kept in memory where they are few and small and not cropped."""
    if cfg.crop_scale_min == 1.0 and KeptImages.fit(len(split), cfg.image_size_px):
        return KeptImages(split.paths, cfg.image_size_px)
    return ImageFiles(split, cfg.image_size_px)


class PairLoader:
    """Yields every captioned image of a split once per epoch, with one of its captions."""

    def __init__(
        self,
        split: DataSplit,
        cfg: DataPart,
        batch_size: int,
        tokenizer: Callable[[Sequence[str]], Tokens],
        source: ImageSource,
        seed: int,
    ) -> None:
        """Raises DataError if there are not at least two captioned images."""
        self._split, self._cfg, self._seed = split, cfg, seed
        self._tokenizer, self._source = tokenizer, source
        self._rows = np.unique(split.caption_image)
        if len(self._rows) < 2:
            raise DataError(
                f"the {split.name} split of {split.dataset} has {len(self._rows)} captioned images; "
                f"training needs at least 2"
            )
        self._batches = -(-len(self._rows) // batch_size)
        self._ranks = ALONE
        self._image_key = numbered(split.image_sha256)
        self._caption_key = numbered([caption_key(text) for text in split.captions])
        self._owned = _owned_captions(self._image_key, self._caption_key, split.caption_image)

    def __len__(self) -> int:
        """Batches per epoch; their sizes differ by at most one, so that no image is left over."""
        return self._batches

    @property
    def pairs(self) -> int:
        """Pairs per epoch."""
        return len(self._rows)

    def reading(self, source: ImageSource) -> PairLoader:
        """The same pairs with their images from another source."""
        other = copy.copy(self)
        other._source = source
        return other

    def shared(self, ranks: Ranks) -> PairLoader:
        """The same batches, of which each process has its part. Raises UsageError for more processes than pairs."""
        smallest = len(self._rows) // self._batches
        if smallest < ranks.count:
            raise UsageError(
                f"a batch of {smallest} pairs cannot be shared by {ranks.count} processes",
                hint="start fewer, or set a larger train.batch_size, which is that of all together",
            )
        other = copy.copy(self)
        other._ranks = ranks
        return other

    def epoch(self, epoch: int, first: int = 0) -> Iterator[PairBatch]:
        """The batches of an epoch from number `first` on, prefetched by `workers` threads."""
        order = np.random.default_rng([self._seed, _ORDER_STREAM, epoch]).permutation(self._rows)
        parts = np.array_split(order, self._batches)[first:]
        return _ahead(lambda rows: self._batch(epoch, rows), parts, self._cfg.workers)

    def draw(self, epoch: int, row: int) -> Draw:
        """The random choices for an image in an epoch."""
        rng = np.random.default_rng([self._seed, _SAMPLE_STREAM, epoch, row])
        captions = self._split.captions_of(row)
        caption = captions[rng.integers(len(captions))]
        views = allowed_views(self._cfg.augment, self._split.captions[caption])
        view = views[rng.integers(len(views))]
        return Draw(row, caption, view, _random_box(rng, self._cfg.crop_scale_min))

    def _batch(self, epoch: int, rows: NDArray[np.int64]) -> PairBatch:
        every = [self.draw(epoch, int(row)) for row in rows]  # other processes' captions decide the positives too
        part = self._ranks.part(len(every))
        draws = every[part]
        captions = tuple(self._split.captions[draw.caption] for draw in draws)
        tokens = self._tokenizer(captions)
        return PairBatch(
            images=self._source.gather(draws),
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            positives=self._positives(draws, every),
            captions=captions,
            joint=None
            if self._ranks.alone
            else JointBatch(self._ranks.sizes(len(every)), part.start, self._positives(every, draws).t().contiguous()),
        )

    def _positives(self, images: Sequence[Draw], texts: Sequence[Draw]) -> Tensor:
        """bool [images, texts]: caption j, or one with its words, was written for image i (section 3)."""
        captions = self._caption_key[[draw.caption for draw in texts]]
        return torch.from_numpy(
            np.stack([np.isin(captions, self._owned[int(self._image_key[draw.row])]) for draw in images])
        )


def _owned_captions(
    image_key: NDArray[np.int64], caption_key: NDArray[np.int64], caption_image: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """The distinct captions of each distinct image, including those of its copies."""
    owned: list[set[int]] = [set() for _ in range(int(image_key.max()) + 1)]
    for image, caption in zip(image_key[caption_image].tolist(), caption_key.tolist(), strict=True):
        owned[image].add(caption)
    return [np.array(sorted(captions), dtype=np.int64) for captions in owned]


def _random_box(rng: np.random.Generator, smallest_area: float) -> CropBox:
    """A crop of the image's aspect ratio, its area share drawn from `smallest_area` to 1."""
    if smallest_area == 1.0:
        return WHOLE
    side = float(np.sqrt(rng.uniform(smallest_area, 1.0)))
    left, top = (float(corner) for corner in rng.uniform(0.0, 1.0 - side, size=2))
    return left, top, left + side, top + side


def _ahead(
    make: Callable[[NDArray[np.int64]], PairBatch], parts: Sequence[NDArray[np.int64]], workers: int
) -> Iterator[PairBatch]:
    """make(part) of every part in order, computed ahead in threads: decoding and copying release the GIL."""
    if workers == 0:
        yield from map(make, parts)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
    waiting: deque[Future[PairBatch]] = deque()
    try:
        for part in parts:
            try:
                waiting.append(pool.submit(make, part))
            except RuntimeError as error:  # "can't start new thread"
                raise CmpaglError(
                    "no thread can be started to decode images",
                    hint="train with --set data.workers=0, or raise the limit on processes (ulimit -u)",
                ) from error
            if len(waiting) >= workers + _BATCHES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
