"""A process's share of the losses of a joint batch: features gathered, hard negatives from wherever they are (ours).

All shares sum to what one process computes on the joint batch, and so do their gradients. Each process scores its own b
pairs against all N, so it holds b x N scores and not N x N.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmpagl_core.datasets.loading import JointBatch, PairBatch
from cmpagl_core.losses import (
    ItmPairs,
    MaskedTokens,
    ScoreShare,
    caption_overlap,
    hard_negatives,
    itc_share,
    itm_loss,
    itm_pairs,
    metric_share,
    mlm_loss,
    spread_share,
)
from cmpagl_core.models.bert import CrossAttentionCache
from cmpagl_core.models.cmpagl import CmpaglModel, TextEncoding
from cmpagl_core.ranks import Ranks
from cmpagl_core.recipe import LossesPart
from cmpagl_core.training.objective import Encoded, LossTerms, match_logits, mean_of, probe_scores


@dataclass(frozen=True)
class Matching:
    """What ITM's own pairs are computed from: own rows first, then those brought from other processes."""

    texts: TextEncoding
    image_tokens: Tensor
    pairs: ItmPairs
    total: int  # pairs of all processes


@dataclass(frozen=True)
class ScoredShare:
    """The losses of the scores, weighted with their graph and unweighted without, and what ITM is to tell apart."""

    weighted: dict[str, Tensor]
    terms: dict[str, Tensor]
    matching: Matching | None
    unmatched: Tensor  # [2], sum and number of the cosines of own images and captions that do not match


def compute_share(
    model: CmpaglModel,
    cfg: LossesPart,
    encoded: Encoded,
    batch: PairBatch,
    joint: JointBatch,
    masked: MaskedTokens | None,
    generator: torch.Generator,
    mlm_normaliser: float | None,
    ranks: Ranks,
) -> LossTerms:
    """As `compute_losses`, for a part of a joint batch; collective: all processes call it at the same time.

    batch: its captions are padded to one width in all processes. mlm_normaliser: of the joint batch.
    """
    scored = score_share(model, cfg, encoded, batch, joint, generator, ranks)
    weighted, terms, matching = scored.weighted, scored.terms, scored.matching
    if cfg.uses_fusion:
        keys = model.cross_attention_cache(encoded.images.tokens if matching is None else matching.image_tokens)
    if matching is not None:
        _add("itm", cfg.itm, match_share(model, matching, keys), weighted, terms)
    if cfg.mlm > 0 and masked is not None:
        _add("mlm", cfg.mlm, mlm_share(model, batch, masked, keys, mlm_normaliser), weighted, terms)
    return LossTerms(torch.stack(list(weighted.values())).sum(), terms, weighted, scored.unmatched)


def score_share(
    model: CmpaglModel,
    cfg: LossesPart,
    encoded: Encoded,
    batch: PairBatch,
    joint: JointBatch,
    generator: torch.Generator,
    ranks: Ranks,
) -> ScoredShare:
    """ITC and triplet, and ITM's pairs, which are drawn by the scores. Collective, as is its backward pass."""
    images, texts = encoded.images, encoded.texts
    with torch.autocast(images.features.device.type, enabled=False):  # cosines in full precision
        all_images = ranks.gather(images.features, joint.sizes)  # [N, D]
        all_texts = ranks.gather(texts.features, joint.sizes)
        by_image = probe_scores(images.features, all_texts, model.probes)  # [P, b, N]
        by_text = probe_scores(texts.features, all_images, model.probes)
        scale = model.logit_scale.exp()
    shares = [
        ScoreShare(of_images, of_texts, batch.positives, joint.text_positives, joint.first)
        for of_images, of_texts in zip(by_image, by_text, strict=True)
    ]
    weighted: dict[str, Tensor] = {}
    terms: dict[str, Tensor] = {}
    if cfg.uses_itc:
        soft = _soft_targets(model, batch, joint, ranks) if cfg.itc_soft_targets > 0 else None
        spread = (cfg.itc_soft_targets, cfg.label_smoothing)
        _add("itc", cfg.itc, mean_of(itc_share(share, scale, soft, *spread) for share in shares), weighted, terms)
    if cfg.uses_triplet:
        _add("triplet", cfg.triplet_weight, mean_of(metric_share(cfg, share) for share in shares), weighted, terms)
    if cfg.uses_hubness:
        near = [by.mean(dim=0).mul(scale.detach()).logsumexp(dim=1) for by in (by_image, by_text)]  # [b] each
        spreads = [spread_share(own, ranks.gather(own.detach(), joint.sizes)) for own in near]
        _add("hubness", cfg.hubness, spreads[0] + spreads[1], weighted, terms)
    matching = None
    if cfg.itm > 0:
        logits = by_image.detach().mean(dim=0) * scale.detach(), by_text.detach().mean(dim=0) * scale.detach()
        draw = _draw_negatives if ranks.alone else _bring_negatives
        matching = draw(cfg, encoded, batch, joint, logits, generator, ranks)
    return ScoredShare(weighted, terms, matching, _unmatched(by_image.detach().mean(dim=0), batch.positives))


def match_share(model: CmpaglModel, matching: Matching, keys: CrossAttentionCache) -> Tensor:
    """A share of `itm_loss`: that of some pairs. keys: of matching's images."""
    logits, matches = match_logits(model, matching.texts, keys, matching.pairs)
    return itm_loss(logits, matches) * (len(matches) / matching.total)


def mlm_share(
    model: CmpaglModel,
    batch: PairBatch,
    masked: MaskedTokens,
    keys: CrossAttentionCache,
    normaliser: float | None,
    own: slice = slice(None),
) -> Tensor:
    """A share of `mlm_loss`: that of the captions `own`. keys: of their images first."""
    mask, chosen = batch.attention_mask[own], masked.chosen[own]
    fused = model.fuse((masked.input_ids[own], mask), _first_rows(keys, len(mask)))
    return mlm_loss(model.mlm_logits(fused[chosen]), batch.input_ids[own][chosen], normaliser)


def _add(name: str, weight: float, loss: Tensor, weighted: dict[str, Tensor], terms: dict[str, Tensor]) -> None:
    terms[name] = loss.detach()
    weighted[name] = weight * loss


def _draw_negatives(
    cfg: LossesPart,
    encoded: Encoded,
    batch: PairBatch,
    joint: JointBatch,
    logits: tuple[Tensor, Tensor],
    generator: torch.Generator,
    ranks: Ranks,
) -> Matching:
    """As `_bring_negatives` in a single process, which has them all."""
    pairs = itm_pairs(logits[0], batch.positives, generator, cfg.itm_hardness)
    return Matching(encoded.texts, encoded.images.tokens, pairs, len(pairs.matches))


def _bring_negatives(
    cfg: LossesPart,
    encoded: Encoded,
    batch: PairBatch,
    joint: JointBatch,
    logits: tuple[Tensor, Tensor],
    generator: torch.Generator,
    ranks: Ranks,
) -> Matching:
    """The own matches, and for each own image and caption a hard negative of the joint batch."""
    images, texts, own = encoded.images, encoded.texts, torch.arange(len(batch), device=batch.input_ids.device)
    wanted_texts = hard_negatives(cfg.itm_hardness * logits[0], batch.positives, generator)
    wanted_images = hard_negatives(cfg.itm_hardness * logits[1], joint.text_positives, generator)
    text_route, image_route = ranks.route(wanted_texts, joint.sizes), ranks.route(wanted_images, joint.sizes)
    far_tokens, far_mask = text_route.bring(texts.tokens), text_route.bring(texts.attention_mask)
    far_images = image_route.bring(images.tokens)
    with_text, with_image = own[wanted_texts >= 0], own[wanted_images >= 0]
    image_rows = torch.cat([own, with_text, len(own) + torch.arange(len(far_images), device=own.device)])
    text_rows = torch.cat([own, len(own) + torch.arange(len(far_tokens), device=own.device), with_image])
    matches = torch.arange(len(image_rows), device=own.device) < len(own)
    both = TextEncoding(
        torch.cat([texts.tokens, far_tokens]), texts.features, torch.cat([texts.attention_mask, far_mask])
    )
    total = sum(joint.sizes) + text_route.total + image_route.total
    image_tokens = torch.cat([images.tokens, far_images])
    return Matching(both, image_tokens, ItmPairs(image_rows, text_rows, matches), total)


def _soft_targets(model: CmpaglModel, batch: PairBatch, joint: JointBatch, ranks: Ranks) -> Tensor:
    """Likeness of own captions to all: [b, N]."""
    ids, mask = (ranks.gather(rows, joint.sizes) for rows in (batch.input_ids, batch.attention_mask))
    own = slice(joint.first, joint.first + len(batch))
    return caption_overlap(ids, mask, model.text_encoder.shape.vocab_size, own)


def _first_rows(keys: CrossAttentionCache, count: int) -> CrossAttentionCache:
    return CrossAttentionCache(tuple(key[:count] for key in keys.keys), tuple(value[:count] for value in keys.values))


def _unmatched(cosines: Tensor, positives: Tensor) -> Tensor:
    """Sum and number of the cosines of own images and captions that do not match: [2]."""
    unmatched = ~positives
    return torch.stack([(cosines * unmatched).sum(), unmatched.sum().to(cosines.dtype)])
