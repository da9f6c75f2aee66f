"""The losses of section 3: tensors in, a scalar out. A duplicate (P, `positives`) is never a negative.

Throughout, `scores` are cosines [B, B] of image i and caption j, where image i belongs to caption i, and `positives`
is bool [B, B], images x captions: (i, j) is true if caption j was written for image i or has the same words as one of
image i's captions, drawn or not. It is not symmetric; texts are ranked against images by its transpose.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cmpagl_core.recipe import LossesPart

CIRCLE_GAMMA = 64.0  # scale of the circle loss [Sun et al. 2020 use 32 to 256]
SUPCON_TEMPERATURE = 0.1  # [Khosla et al. 2020, section 4]
_SOFT_TEMPERATURE = 0.1  # temperature of the caption overlaps in soft targets (ours)
_MASKED, _RANDOM = 0.8, 0.1  # shares of the selected tokens; the rest are unchanged [BERT]


def itc_loss(
    logits: Tensor,
    positives: Tensor,
    soft_targets: Tensor | None = None,
    soft_share: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Contrastive loss both ways; other positives are left out of the denominator (section 3).

    logits: [B, B], scores times the logit scale. soft_targets: [B, B], similarity of captions (ours).
    A row's loss is (1 - shares) times the mean over its positives p of -log(e^p / (e^p + sum over negatives e^n)),
    plus soft_share and label_smoothing times the cross-entropy between the negatives' distribution and
    soft_targets' or the uniform one. Both are over negatives only, so no positive is ever pushed away.
    """
    forward = _itc_rows(logits, positives, soft_targets, soft_share, label_smoothing)
    turned = None if soft_targets is None else soft_targets.t()
    backward = _itc_rows(logits.t(), positives.t(), turned, soft_share, label_smoothing)
    return (forward.mean() + backward.mean()) / 2


def hubness_loss(logits: Tensor) -> Tensor:
    """Variance of how near the images of a batch are to all its captions, plus the same of the captions [ours].

    logits: [B, B], scores times a constant. A hub is near to everything and takes the first ranks of queries that are
    not its own [Radovanovic et al. 2010]. Nearness is the log-sum of exponentials of a row or column.
    """
    images, texts = logits.logsumexp(dim=1), logits.logsumexp(dim=0)
    return spread_share(images, images) + spread_share(texts, texts)


def spread_share(own: Tensor, everything: Tensor) -> Tensor:
    """The share of the variance of `everything` [N] that its part `own` [b] has.

    The mean has no gradient and needs none: deviations from it sum to 0.
    """
    return (own - everything.detach().mean()).square().sum() / max(1, len(everything) - 1)


def feature_distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine of what a student predicts of an image and its teacher's features, averaged [ours].

    student, teacher: [B, D].
    """
    return 1.0 - F.cosine_similarity(student.float(), teacher.float(), dim=-1).mean()


def relation_distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far the student's idea of which images of a batch are alike is from its teacher's [Park et al. 2019; ours].

    student: [B, C]. teacher: [B, D]. Each row of cosines between different images becomes a distribution; the loss is
    the mean Kullback-Leibler divergence of the student's rows from the teacher's. Raises ValueError for B < 2.
    """
    if len(student) < 2:
        raise ValueError("relations need at least two images")
    others = ~torch.eye(len(student), dtype=torch.bool, device=student.device)

    def log_rows(features: Tensor) -> Tensor:
        unit = F.normalize(features.float(), dim=-1)
        cosines = (unit @ unit.t())[others].view(len(unit), -1)  # [B, B - 1], an image's own left out
        return (cosines / temperature).log_softmax(dim=-1)

    return F.kl_div(log_rows(student), log_rows(teacher), log_target=True, reduction="batchmean")


def triplet_loss(
    scores: Tensor,
    positives: Tensor,
    margin: float = 0.2,
    intra_weight: float = 0.0,
    negatives: Literal["sum", "hardest"] = "sum",
) -> Tensor:
    """Hinge against negatives both ways, plus intra_weight (1 - s_ii), which pulls a match towards 1 [paper].

    margin is a cosine. intra_weight 0 is the plain triplet loss. The sum over negatives, or the hardest one, is
    averaged over the batch.
    """
    match = scores.diagonal()
    violated_texts = _violations(scores, positives, match[:, None], margin)
    violated_images = _violations(scores, positives, match[None, :], margin)
    hinges = _hinges(violated_texts, 1, negatives) + _hinges(violated_images, 0, negatives)
    return (hinges + intra_weight * (1 - match)).mean()


def circle_loss(scores: Tensor, positives: Tensor, margin: float = 0.25, gamma: float = CIRCLE_GAMMA) -> Tensor:
    """Circle loss of each row and each column [Sun et al. 2020, equation 6], averaged."""
    to_positives, to_negatives = _circle_terms(scores, positives, margin, gamma)
    rows = F.softplus(to_positives.logsumexp(dim=1) + to_negatives.logsumexp(dim=1))
    columns = F.softplus(to_positives.logsumexp(dim=0) + to_negatives.logsumexp(dim=0))
    return (rows.mean() + columns.mean()) / 2


def supcon_loss(scores: Tensor, positives: Tensor, temperature: float = SUPCON_TEMPERATURE) -> Tensor:
    """Supervised contrastive loss, L_out between modalities, both ways [Khosla et al. 2020, equation 2].

    As published, a positive's denominator includes the row's other positives, which thus compete.
    """
    logits = scores / temperature
    forward, backward = _supcon_rows(logits, positives, 1), _supcon_rows(logits, positives, 0)
    return (forward.mean() + backward.mean()) / 2


def metric_loss(cfg: LossesPart, scores: Tensor, positives: Tensor) -> Tensor:
    """The loss chosen by the recipe's `triplet`: a form of the triplet loss, circle or supcon."""
    if cfg.triplet == "circle":
        return circle_loss(scores, positives, cfg.margin_cosine)
    if cfg.triplet == "supcon":
        return supcon_loss(scores, positives)
    intra = cfg.intra_weight if cfg.triplet == "intra" else 0.0
    return triplet_loss(scores, positives, cfg.margin_cosine, intra, cfg.triplet_negatives)


@dataclass(frozen=True)
class ScoreShare:
    """What one of several processes has of the scores of N pairs: its own b images and b captions against all.

    The losses of all shares sum to the loss of the whole matrix.
    """

    images: Tensor  # [b, N]: own images, all captions
    texts: Tensor  # [b, N]: own captions, all images
    image_positives: Tensor  # bool [b, N]
    text_positives: Tensor  # bool [b, N]
    first: int  # the own pairs are first, first + 1, ...

    @property
    def sides(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        return (self.images, self.image_positives), (self.texts, self.text_positives)


def itc_share(
    share: ScoreShare,
    scale: Tensor,
    soft_targets: Tensor | None = None,
    soft_share: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """A share of `itc_loss`. soft_targets: [b, N], own captions with all; their similarity is symmetric."""
    sums = [
        _itc_rows(scores * scale, positives, soft_targets, soft_share, label_smoothing).sum()
        for scores, positives in share.sides
    ]
    return (sums[0] + sums[1]) / (2 * share.images.shape[1])


def metric_share(cfg: LossesPart, share: ScoreShare) -> Tensor:
    """A share of `metric_loss`."""
    total = share.images.shape[1]
    if cfg.triplet == "circle":
        terms = [_circle_terms(*side, cfg.margin_cosine, CIRCLE_GAMMA) for side in share.sides]
        return _sum(F.softplus(pull.logsumexp(dim=1) + push.logsumexp(dim=1)) for pull, push in terms) / (2 * total)
    if cfg.triplet == "supcon":
        sides = [(scores / SUPCON_TEMPERATURE, positives) for scores, positives in share.sides]
        return _sum(_supcon_rows(*side, 1) for side in sides) / (2 * total)
    hinges = []
    for scores, positives in share.sides:
        match = scores.diagonal(share.first)
        hinges.append(
            _hinges(_violations(scores, positives, match[:, None], cfg.margin_cosine), 1, cfg.triplet_negatives)
        )
    intra = cfg.intra_weight if cfg.triplet == "intra" else 0.0
    match = share.images.diagonal(share.first)
    return _sum((*hinges, intra * (1 - match))) / total


def _sum(rows: Iterable[Tensor]) -> Tensor:
    return torch.stack([one.sum() for one in rows]).sum()


@dataclass(frozen=True)
class ItmPairs:
    """K pairs for the ITM head: rows of images and texts, and which of them match."""

    images: Tensor  # [K] int64
    texts: Tensor  # [K] int64
    matches: Tensor  # [K] bool


def hard_negatives(logits: Tensor, positives: Tensor, generator: torch.Generator) -> Tensor:
    """One negative column per row, sampled from the softmax of its logits with P masked: [B], -1 if there is none.

    logits: [B, B], scores times the logit scale. The generator is on the CPU.
    """
    chances = logits.detach().float().masked_fill(positives, -torch.inf).cpu()
    has_negative = ~positives.all(dim=1).cpu()
    drawn = torch.full((len(chances),), -1, dtype=torch.long)
    if bool(has_negative.any()):
        weights = chances[has_negative].softmax(dim=1)
        drawn[has_negative] = torch.multinomial(weights, 1, generator=generator).squeeze(1)
    return drawn.to(logits.device)


def itm_pairs(logits: Tensor, positives: Tensor, generator: torch.Generator, hardness: float = 1.0) -> ItmPairs:
    """All B matches, one hard negative text for each image, one hard negative image for each text (section 3).

    hardness: scales the logits from which negatives are sampled; 1 is the paper's, 0 samples uniformly (ours).
    """
    texts = hard_negatives(hardness * logits, positives, generator)
    images = hard_negatives(hardness * logits.t(), positives.t(), generator)
    own = torch.arange(len(logits), device=logits.device)
    with_text, with_image = texts >= 0, images >= 0
    image_rows = torch.cat([own, own[with_text], images[with_image]])
    text_rows = torch.cat([own, texts[with_text], own[with_image]])
    return ItmPairs(image_rows, text_rows, torch.arange(len(image_rows), device=logits.device) < len(own))


def itm_loss(logits: Tensor, matches: Tensor) -> Tensor:
    """Cross-entropy of two classes, index 1 being a match. logits: [K, 2]. matches: bool [K]."""
    return F.cross_entropy(logits.float(), matches.long())


@dataclass(frozen=True)
class MaskedTokens:
    """A batch for MLM: ids after masking, and the positions to predict."""

    input_ids: Tensor  # [B, L] int64
    chosen: Tensor  # [B, L] bool


def mask_tokens(
    input_ids: Tensor,
    attention_mask: Tensor,
    probability: float,
    mask_id: int,
    special_ids: tuple[int, ...],
    vocab_size: int,
    generator: torch.Generator,
) -> MaskedTokens:
    """Select tokens with `probability`; 80 % of them become [MASK], 10 % a random token, 10 % are unchanged [BERT].

    Padding and `special_ids` are never selected. The generator is on the CPU.
    """
    shape = input_ids.shape
    draw = torch.rand(2, *shape, generator=generator).to(input_ids.device)
    random_ids = torch.randint(vocab_size, shape, generator=generator).to(input_ids.device)
    special = torch.isin(input_ids, torch.tensor(special_ids, device=input_ids.device))
    chosen = (draw[0] < probability) & attention_mask & ~special
    masked = torch.where(chosen & (draw[1] < _MASKED), mask_id, input_ids)
    masked = torch.where(chosen & (draw[1] >= 1 - _RANDOM), random_ids, masked)
    return MaskedTokens(masked, chosen)


def mlm_loss(logits: Tensor, targets: Tensor, normaliser: float | None = None) -> Tensor:
    """Cross-entropy at the selected tokens. logits: [K, V]. targets: [K].

    The sum is divided by `normaliser`, or by K. With accumulation, pass the tokens of all micro-batches divided by
    their number, so that accumulation does not change the loss.
    """
    total = F.cross_entropy(logits.float(), targets, reduction="sum")
    return total / max(1.0, float(len(targets)) if normaliser is None else normaliser)


def caption_overlap(input_ids: Tensor, attention_mask: Tensor, vocab_size: int, rows: slice = slice(None)) -> Tensor:
    """Similarity of captions: Jaccard index of their tokens, [B, B] in 0 to 1 (ours). rows: those that are wanted."""
    present = torch.zeros(len(input_ids), vocab_size, device=input_ids.device)
    present.scatter_reduce_(1, input_ids, attention_mask.float(), reduce="amax")
    shared = present[rows] @ present.t()
    sizes = present.sum(dim=1)
    return shared / (sizes[rows, None] + sizes[None, :] - shared).clamp(min=1)


def _violations(scores: Tensor, positives: Tensor, match: Tensor, margin: float) -> Tensor:
    """How far each negative comes within the margin of a match."""
    return (margin - match + scores).clamp(min=0).masked_fill(positives, 0)


def _hinges(violations: Tensor, dim: int, negatives: Literal["sum", "hardest"]) -> Tensor:
    return violations.sum(dim=dim) if negatives == "sum" else violations.amax(dim=dim)


def _circle_terms(scores: Tensor, positives: Tensor, margin: float, gamma: float) -> tuple[Tensor, Tensor]:
    """The exponents of the circle loss: of positives, and of negatives."""
    pull = (1 + margin - scores).clamp(min=0).detach()
    push = (scores + margin).clamp(min=0).detach()
    to_positives = (-gamma * pull * (scores - (1 - margin))).masked_fill(~positives, -torch.inf)
    to_negatives = (gamma * push * (scores - margin)).masked_fill(positives, _lowest(scores))
    return to_positives, to_negatives


def _supcon_rows(logits: Tensor, positives: Tensor, dim: int) -> Tensor:
    return -(logits.log_softmax(dim=dim) * positives).sum(dim=dim) / positives.sum(dim=dim)


def _itc_rows(
    logits: Tensor, positives: Tensor, soft_targets: Tensor | None, soft_share: float, smoothing: float
) -> Tensor:
    """The loss of each row: [B]."""
    lowest = _lowest(logits)
    negatives = logits.masked_fill(positives, lowest)
    rest = negatives.logsumexp(dim=1, keepdim=True)  # [B, 1]
    pulled = (F.softplus(rest - logits) * positives).sum(dim=1) / positives.sum(dim=1)
    rows = (1 - soft_share - smoothing) * pulled
    has_negative = (~positives).any(dim=1)
    log_shares = (negatives - rest).masked_fill(positives, 0)  # [B, B], of the negatives
    if smoothing > 0:
        uniform = log_shares.sum(dim=1) / (~positives).sum(dim=1).clamp(min=1)
        rows = rows - smoothing * uniform
    if soft_share > 0 and soft_targets is not None:
        target = (soft_targets.to(logits.dtype) / _SOFT_TEMPERATURE).masked_fill(positives, lowest).softmax(dim=1)
        rows = rows - soft_share * torch.where(has_negative, (target * log_shares).sum(dim=1), 0.0)
    return rows


def _lowest(like: Tensor) -> float:
    """Low enough to vanish in a softmax, but finite, so that a row without negatives has no NaN gradient."""
    return torch.finfo(like.dtype).min / 4
