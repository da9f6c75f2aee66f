"""Images and captions to features with a run's model, in bounded memory (ours)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from cmpagl_core.datasets.augment import Tta, d4_transform, view_count
from cmpagl_core.device import autocast
from cmpagl_core.encoders.decode import Decode, decoded_batches, image_decoder
from cmpagl_core.encoders.encoder import EncodedBatch, Features, collect
from cmpagl_core.encoders.feature_set import unique_texts
from cmpagl_core.encoders.length_groups import length_groups
from cmpagl_core.errors import DataError
from cmpagl_core.files import atomic_path
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import decoded_px, to_pixel_values
from cmpagl_core.progress import Progress
from cmpagl_core.recipe import Recipe
from cmpagl_core.runs import LoadedModel

if TYPE_CHECKING:  # not imported at the top: an index with nothing new does not need transformers
    from cmpagl_core.models.cmpagl import TextEncoding

_TOKENS_PER_BATCH = 2048
_TEXTS_AT_ONCE = 65_536


@dataclass(frozen=True)
class TextGroup:
    """Texts of similar length, encoded together: their rows and encodings."""

    rows: NDArray[np.int64]
    encoding: TextEncoding


def encode_images(
    loaded: LoadedModel,
    images: Sequence[ImageRef],
    progress: Progress,
    batch_size: int | None = None,
    tta: Tta | None = None,
) -> Features:
    """image_features, float32 [N, D] of unit length, in the order of `images`.

    batch_size and tta: those of the recipe if None; tta "d4" averages over the 8 flips and 90-degree rotations [ours].
    Raises DataError for the first unreadable image.
    """
    with forward_pass(loaded):
        return collect(encoded_batches(loaded, images, batch_size, tta), len(images), progress)


def encoded_batches(
    loaded: LoadedModel, images: Sequence[ImageRef], batch_size: int | None = None, tta: Tta | None = None
) -> Iterator[EncodedBatch]:
    """As `encode_images`, batch by batch, with broken images returned instead of raised."""
    chosen = loaded.recipe.evaluate.tta if tta is None else tta
    size = loaded.recipe.evaluate.batch_size if batch_size is None else batch_size
    return encode_with(lambda batch: _image_features(loaded, batch, chosen), decoder(loaded.recipe), images, size)


def encode_with(
    encode: Callable[[Tensor], Tensor], decode: Decode, images: Sequence[ImageRef], batch_size: int
) -> Iterator[EncodedBatch]:
    """Run any image encoder ([B, 3, S, S] to [B, D]) over images, decoding in the background."""
    for batch in decoded_batches(images, decode, batch_size):
        features = unit_rows(encode(batch.pixel_values)) if batch.rows else np.empty((0, 0), dtype=np.float32)
        yield EncodedBatch(features, batch.rows, batch.stamps, batch.broken)


def encode_captions(loaded: LoadedModel, texts: Sequence[str], progress: Progress) -> Features:
    """text_features, float32 [M, D] of unit length, in the order of `texts`; equal texts have equal features.

    Each distinct text is encoded once, batched by length, so that little time is spent on padding.
    """
    unique, row_of = unique_texts(texts)
    features: Features | None = None
    with forward_pass(loaded), progress.task("encode captions", len(unique), "captions") as advance:
        for group in encode_text_groups(loaded, unique):
            block = unit_rows(group.encoding.features)
            if features is None:
                features = np.empty((len(unique), block.shape[1]), dtype=np.float32)
            features[group.rows] = block
            advance(len(group.rows))
    if features is None:
        return np.empty((0, loaded.recipe.losses.embed_dim), dtype=np.float32)
    return features[row_of]


def encode_text_groups(loaded: LoadedModel, texts: Sequence[str]) -> Iterator[TextGroup]:
    """Encode texts in groups of similar length, longest first (so that lack of memory shows immediately)."""
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        tokens = loaded.tokenizer(texts[start : start + _TEXTS_AT_ONCE])
        lengths = tokens.attention_mask.sum(dim=1).numpy()
        for rows in length_groups(lengths, _fits, longest_first=True):
            longest = int(lengths[rows].max())
            chosen = torch.from_numpy(rows)
            input_ids = tokens.input_ids[chosen, :longest].to(loaded.device)
            attention_mask = tokens.attention_mask[chosen, :longest].to(loaded.device)
            with forward_pass(loaded):
                encoding = loaded.model.encode_texts(input_ids, attention_mask)
            yield TextGroup(rows + start, encoding)


def encode_image_tokens(
    loaded: LoadedModel, images: Sequence[ImageRef], out: Path, progress: Progress
) -> NDArray[np.float16]:
    """image_tokens of every image, float16 [N, 1 + T, C], in a memory-mapped `.npy` file at `out`.

    The fusion encoder attends to them; they are on disk because 1,093 images of Swin-T take 84 MB.
    Raises DataError for the first unreadable image.
    """
    tokens: np.memmap[Any, np.dtype[np.float16]] | None = None
    bar = progress.task("encode image tokens", len(images), "img")
    with atomic_path(out) as partial, forward_pass(loaded), bar as advance:
        for batch in decoded_batches(images, decoder(loaded.recipe), loaded.recipe.evaluate.batch_size):
            if batch.broken:
                raise DataError(batch.broken[0].why, hint=f"repair or remove {batch.broken[0].image.path.name}")
            block = _image_tokens(loaded, batch.pixel_values)
            if tokens is None:
                tokens = np.lib.format.open_memmap(
                    partial, mode="w+", dtype=np.float16, shape=(len(images), *block.shape[1:])
                )
            tokens[batch.rows] = block
            advance(len(batch.rows))
        if tokens is None:
            raise DataError("there are no images to encode", hint="choose a split with images")
        tokens.flush()
    mapped: NDArray[np.float16] = np.load(out, mmap_mode="r")
    return mapped


@contextmanager
def forward_pass(loaded: LoadedModel) -> Iterator[None]:
    """Without gradients, in the run's precision. Kept open over many batches, so that autocast casts weights once."""
    with torch.inference_mode(), autocast(loaded.device, loaded.recipe.train.precision):
        yield


def decoder(recipe: Recipe) -> Decode:
    """From an image to the pixel_values of the recipe's image encoder."""
    size = recipe.data.image_size_px
    return image_decoder(lambda image: to_pixel_values(image, size), decoded_px(size))


def preprocessing(recipe: Recipe) -> str:
    """The preprocessing of an image, as a text that artefacts store."""
    side_px, tta = recipe.data.image_size_px, recipe.evaluate.tta
    return f"RGB, bicubic to {side_px} x {side_px}, ImageNet mean and std, tta {tta}"


def _fits(texts: int, shortest: int, longest: int) -> bool:
    return texts * longest <= _TOKENS_PER_BATCH


def _image_features(loaded: LoadedModel, pixel_values: Tensor, tta: Tta) -> Tensor:
    on_device = pixel_values.to(loaded.device)
    with forward_pass(loaded):
        seen = range(view_count(tta))
        each = [loaded.model.encode_images(d4_transform(on_device, view)).features.float() for view in seen]
    return torch.stack(each).mean(dim=0)


def unit_rows(features: Tensor) -> Features:
    """float32 on the CPU, of unit length in fp32 even if the model ran in bf16."""
    rows: Features = F.normalize(features.float(), dim=-1).cpu().numpy()
    return rows


def _image_tokens(loaded: LoadedModel, pixel_values: Tensor) -> NDArray[np.float16]:
    with forward_pass(loaded):
        tokens = loaded.model.encode_images(pixel_values.to(loaded.device)).tokens
    half: NDArray[np.float16] = tokens.half().cpu().numpy()
    return half
