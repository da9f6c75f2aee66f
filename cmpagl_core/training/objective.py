"""The objective of one batch: encode its images and captions, mask, and sum the recipe's losses (section 3)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cmpagl_core.datasets.loading import PairBatch
from cmpagl_core.encoders.length_groups import length_groups
from cmpagl_core.losses import (
    ItmPairs,
    MaskedTokens,
    caption_overlap,
    hubness_loss,
    itc_loss,
    itm_loss,
    itm_pairs,
    mask_tokens,
    metric_loss,
    mlm_loss,
)
from cmpagl_core.models.bert import CrossAttentionCache
from cmpagl_core.models.cmpagl import CmpaglModel, ImageEncoding, TextEncoding
from cmpagl_core.models.tokenizer import CaptionTokenizer
from cmpagl_core.recipe import LossesPart

_TEXT_GROUPS = 3  # together with deduplication this removes 38 % of the tokens of a UCM batch of 128
_PAIR_GROUPS = 3  # removes 28 % of the padding of such a batch's pairs


@dataclass(frozen=True)
class LossTerms:
    """total: the weighted sum, differentiable. terms: each loss unweighted, detached. weighted: each with its graph.

    Of a part of a joint batch they are shares of these, and unmatched is the sum and number of its cosines of images
    and captions that do not match.
    """

    total: Tensor
    terms: dict[str, Tensor]
    weighted: dict[str, Tensor]
    unmatched: Tensor | None = None


@dataclass(frozen=True)
class Encoded:
    """A batch as encoded by the two encoders."""

    images: ImageEncoding
    texts: TextEncoding

    @property
    def is_finite(self) -> bool:
        """Whether all features are finite."""
        return bool(torch.isfinite(self.images.features.sum() + self.texts.features.sum()))


def mask_batch(
    cfg: LossesPart, tokenizer: CaptionTokenizer, batch: PairBatch, generator: torch.Generator
) -> MaskedTokens | None:
    """The batch's captions masked for MLM; None if the recipe has no MLM."""
    if cfg.mlm == 0:
        return None
    return mask_tokens(
        batch.input_ids,
        batch.attention_mask,
        cfg.mlm_probability,
        tokenizer.mask_id,
        (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id),
        tokenizer.vocab_size,
        generator,
    )


def compute_losses(
    model: CmpaglModel,
    cfg: LossesPart,
    encoded: Encoded,
    batch: PairBatch,
    masked: MaskedTokens | None,
    generator: torch.Generator,
    mlm_normaliser: float | None = None,
) -> LossTerms:
    """The recipe's weighted sum for one micro-batch.

    masked: from `mask_batch`. generator: draws the hard negatives. mlm_normaliser: see `mlm_loss`.
    """
    images, texts, positives = encoded.images, encoded.texts, batch.positives
    with torch.autocast(images.features.device.type, enabled=False):  # cosines in full precision
        scores = probe_scores(images.features, texts.features, model.probes)  # [P, B, B]
        scale = model.logit_scale.exp()
        logits = scores.mean(dim=0) * scale  # [B, B]
    weighted: dict[str, Tensor] = {}
    terms: dict[str, Tensor] = {}

    def add(name: str, weight: float, loss: Tensor) -> None:
        terms[name] = loss.detach()
        weighted[name] = weight * loss

    if cfg.uses_itc:
        soft = None
        if cfg.itc_soft_targets > 0:
            soft = caption_overlap(batch.input_ids, batch.attention_mask, model.text_encoder.shape.vocab_size)
        shares = (cfg.itc_soft_targets, cfg.label_smoothing)
        add("itc", cfg.itc, mean_of(itc_loss(probe * scale, positives, soft, *shares) for probe in scores))
    if cfg.uses_triplet:
        add("triplet", cfg.triplet_weight, mean_of(metric_loss(cfg, probe, positives) for probe in scores))
    if cfg.uses_hubness:
        add("hubness", cfg.hubness, hubness_loss(scores.mean(dim=0) * scale.detach()))
    if cfg.uses_fusion:
        image_keys = model.cross_attention_cache(
            images.tokens
        )  # computed once; every image is paired with several texts
    if cfg.itm > 0:
        pairs = itm_pairs(logits, positives, generator, cfg.itm_hardness)
        add("itm", cfg.itm, itm_loss(*match_logits(model, texts, image_keys, pairs)))
    if cfg.mlm > 0 and masked is not None:
        fused = model.fuse((masked.input_ids, texts.attention_mask), image_keys)
        logits_at_chosen = model.mlm_logits(fused[masked.chosen])  # [K, V]
        add("mlm", cfg.mlm, mlm_loss(logits_at_chosen, batch.input_ids[masked.chosen], mlm_normaliser))
    return LossTerms(torch.stack(list(weighted.values())).sum(), terms, weighted)


def probe_scores(image_features: Tensor, text_features: Tensor, probes: int) -> Tensor:
    """Cosines of each probe, [P, B, B], from features [B, D] of P equally wide groups; their mean ranks.

    Each probe has its own losses, which ranks better than one loss on the mean of their cosines (ours).
    """
    pairs = zip(image_features.chunk(probes, dim=1), text_features.chunk(probes, dim=1), strict=True)
    return torch.stack([probes * (images @ texts.t()) for images, texts in pairs])


def encode_batch_texts(model: CmpaglModel, input_ids: Tensor, attention_mask: Tensor) -> TextEncoding:
    """`model.encode_texts`, but faster: [B, L] ids and mask, padded on the right (ours).

    Each distinct caption is encoded once, grouped by length; identical captions therefore share their dropout.
    """
    width = input_ids.shape[1]
    unique, row_of = torch.unique(input_ids.masked_fill(~attention_mask, -1), dim=0, return_inverse=True)
    groups = _groups((unique >= 0).sum(dim=1), _TEXT_GROUPS)
    tokens, features = [], []
    for rows, longest in groups:
        ids = unique[rows, :longest]
        encoding = model.encode_texts(ids.clamp(min=0), ids >= 0)
        tokens.append(F.pad(encoding.tokens, (0, 0, 0, width - ids.shape[1])))
        features.append(encoding.features)
    place = torch.cat([rows for rows, _ in groups]).argsort()[row_of]  # [B], row among the encoded
    return TextEncoding(torch.cat(tokens)[place], torch.cat(features)[place], attention_mask)


def match_logits(
    model: CmpaglModel, texts: TextEncoding, image_keys: CrossAttentionCache, pairs: ItmPairs
) -> tuple[Tensor, Tensor]:
    """ITM logits [K, 2] and whether each pair matches [K], sorted by length: each group is padded to its longest text.

    The last fusion layer computes only the first token, the one that the head reads.
    """
    logits, matches = [], []
    for rows, longest in _groups(texts.attention_mask.sum(dim=1)[pairs.texts], _PAIR_GROUPS):
        chosen, keys = pairs.texts[rows], image_keys.select(pairs.images[rows])
        tokens, mask = texts.tokens[chosen, :longest], texts.attention_mask[chosen, :longest]
        logits.append(model.itm_logits(model.fuse_first_token(tokens, mask, keys)))
        matches.append(pairs.matches[rows])
    return torch.cat(logits), torch.cat(matches)


def _groups(lengths: Tensor, groups: int) -> list[tuple[Tensor, int]]:
    """At most `groups` groups of equally many rows, shortest first: the rows, and their greatest length."""
    counted, most = lengths.cpu().numpy(), -(-len(lengths) // groups)
    found = length_groups(counted, lambda texts, shortest, longest: texts <= most)
    return [(torch.from_numpy(rows).to(lengths.device), int(counted[rows[-1]])) for rows in found]


def mean_of(losses: Iterable[Tensor]) -> Tensor:
    """The mean of the losses of a model's probes."""
    return torch.stack(list(losses)).mean()
