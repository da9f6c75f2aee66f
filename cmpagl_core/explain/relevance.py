"""Relevance of image regions to words, and the share of the global window, from one forward and backward pass.

Relevance is gradient-weighted attention [after Chefer, Gur and Wolf, ICCV 2021]: in each fusion layer, the
cross-attention of a word times the gradient of the match logit with respect to it, clipped at 0, averaged over heads
and summed over layers. It shows evidence for the match, and does not prove why the match was found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cmpagl_core.errors import UsageError
from cmpagl_core.imagery.images import read_pixel_values
from cmpagl_core.imagery.reading import DEFAULT, Reading
from cmpagl_core.models.bert import FusionEncoder, attention_bias
from cmpagl_core.models.cmpagl import CmpaglModel
from cmpagl_core.models.gswin import GswinBranch, GswinEncoder, scaled
from cmpagl_core.runs import LoadedModel

Relevance = NDArray[np.float32]


@dataclass(frozen=True)
class WordRelevance:
    """One word of the text and its relevance over the image."""

    word: str
    relevance: Relevance  # [h, w], at least 0, on one scale for all words
    share: float  # share of all words' relevance

    @property
    def peak(self) -> tuple[float, float]:
        """The centre of the cell with the highest relevance: across and down, as shares of the image."""
        row, column = np.unravel_index(int(self.relevance.argmax()), self.relevance.shape)
        return (float(column) + 0.5) / self.relevance.shape[1], (float(row) + 0.5) / self.relevance.shape[0]


@dataclass(frozen=True)
class StageShare:
    """How much of one stage's attention output comes from the global window."""

    stage: int  # 1 to 4
    local: float  # mean norm of the local windows' output per token
    global_window: float  # mean norm of the global window's output, including its gate

    @property
    def share(self) -> float:
        """The global window's share of both, 0 to 1."""
        both = self.local + self.global_window
        return self.global_window / both if both > 0 else 0.0


@dataclass(frozen=True)
class Explanation:
    """The explanation of one image and one text."""

    text: str
    cosine: float
    match_probability: float
    relevance: Relevance  # [h, w], of the whole text
    words: tuple[WordRelevance, ...]
    stages: tuple[StageShare, ...]


def explain(loaded: LoadedModel, image: Path, text: str, reading: Reading = DEFAULT) -> Explanation:
    """Explain the match of an image and a text. reading: which bands it is seen in, and how they become 8 bits.

    Raises UsageError for a run without an ITM head or a text without a word, DataError for a broken image.
    """
    return explain_pixels(loaded, read_pixel_values(image, loaded.recipe.data.image_size_px, reading), text)


def explain_pixels(loaded: LoadedModel, pixel_values: Tensor, text: str) -> Explanation:
    """As `explain`, for an image that is read already, [3, S, S]."""
    model = loaded.model
    if model.fusion_encoder is None or model.itm_head is None:
        raise UsageError(
            "this run has no ITM head, which explain needs",
            hint="train with fusion_encoder.enabled true and losses.itm above 0",
        )
    words = loaded.tokenizer.word_positions(text)
    if not words:
        raise UsageError(f"there is no word in {text!r}", hint='write for instance "storage tanks beside a road"')
    pixels = pixel_values[None].to(loaded.device)
    tokens = loaded.tokenizer([text])
    input_ids, mask = tokens.input_ids.to(loaded.device), tokens.attention_mask.to(loaded.device)
    with torch.no_grad(), stage_shares(model.image_encoder) as shares:
        images = model.encode_images(pixels)
        texts = model.encode_texts(input_ids, mask)
    relevance, probability = token_relevance(model, model.fusion_encoder, texts.tokens, mask, images.tokens)
    side = model.image_encoder.last_map_size
    maps = relevance[:, 1:].view(-1, side, side).float().cpu().numpy()  # [L, h, w]; in front is the map's mean
    by_word = [maps[positions].sum(axis=0) for _, positions in words]
    total = float(sum(relevance.sum() for relevance in by_word)) or 1.0
    return Explanation(
        text=text,
        cosine=float((images.features * texts.features).sum()),
        match_probability=probability,
        relevance=maps.sum(axis=0),
        words=tuple(
            WordRelevance(word, relevance, float(relevance.sum()) / total)
            for (word, _), relevance in zip(words, by_word, strict=True)
        ),
        stages=tuple(shares),
    )


def token_relevance(
    model: CmpaglModel, fusion: FusionEncoder, text_tokens: Tensor, mask: Tensor, image_tokens: Tensor
) -> tuple[Tensor, float]:
    """text_tokens: [1, L, H]. mask: bool [1, L]. image_tokens: [1, T, C].

    Returns the relevance [L, T] of each image token to each text token, and the match probability. A token whose
    attention cannot reach the match logit (all but the first, in the last layer) takes no part there.
    """
    with torch.enable_grad():
        fused, weights = fuse_with_weights(fusion, text_tokens, mask, image_tokens.detach().requires_grad_())
        logits = model.itm_logits(fused)[0]
        gradients = torch.autograd.grad(logits[1] - logits[0], weights)
    relevance = torch.stack(
        [(weight * gradient).clamp(min=0).mean(dim=1)[0] for weight, gradient in zip(weights, gradients, strict=True)]
    ).sum(dim=0)
    return relevance.detach(), float(logits.detach().softmax(dim=0)[1])


def fuse_with_weights(
    fusion: FusionEncoder, text_tokens: Tensor, mask: Tensor, image_tokens: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The fusion encoder's output, with the cross-attention weights of each layer: [B, heads, L, T]."""
    x, bias, found = text_tokens, attention_bias(mask, text_tokens.dtype), []
    cache = fusion.cross_attention_cache(image_tokens)
    layers: list[Any] = list(fusion.layers)
    for layer, key, value in zip(layers, cache.keys, cache.values, strict=True):
        attended, _ = layer.attention(x, bias)
        cross = layer.crossattention
        query = cross.self.query(attended).unflatten(2, (fusion.num_heads, -1)).transpose(1, 2)
        weights = ((query @ key.transpose(2, 3)) / math.sqrt(query.shape[-1])).softmax(dim=-1)
        found.append(weights)
        attended = cross.output((weights @ value).transpose(1, 2).flatten(2), attended)
        x = layer.feed_forward_chunk(attended)
    return x, found


@contextmanager
def stage_shares(encoder: GswinEncoder) -> Iterator[list[StageShare]]:
    """Measure the attention outputs of each stage during the block; the list is filled at its end."""
    added: dict[tuple[int, str], list[float]] = {}
    handles = []

    def listen(stage: int, block: GswinBranch) -> None:
        """Record a block's attention outputs, computed separately, since the block itself may fuse its steps."""

        def note(name: str, branch: Tensor) -> None:
            added.setdefault((stage, name), []).append(float(branch.float().norm(dim=-1).mean()))

        def before(_: nn.Module, inputs: tuple[Tensor, Tensor | None]) -> None:
            x, global_window = inputs
            local = scaled(block.attn(block.norm1(x)), block.scale1)
            note("local", local)
            if block.global_branch is not None:
                note("global", block.global_branch(x + local, global_window))

        handles.append(block.register_forward_pre_hook(before))

    for key, stage in encoder.layers.items():
        for block in stage.modules():
            if isinstance(block, GswinBranch):
                listen(int(key) + 1, block)
    shares: list[StageShare] = []
    try:
        yield shares
    finally:
        for handle in handles:
            handle.remove()
    for key in encoder.layers:
        local, whole = (added.get((int(key) + 1, name), []) for name in ("local", "global"))
        mean = [float(np.mean(values)) if values else 0.0 for values in (local, whole)]
        shares.append(StageShare(int(key) + 1, *mean))
