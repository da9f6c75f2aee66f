"""One optimiser step: forward and backward over its micro-batches, then clipping, AdamW and the running average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmpagl_core.datasets.loading import PairBatch
from cmpagl_core.device import autocast
from cmpagl_core.errors import CmpaglError
from cmpagl_core.losses import LossTerms, MaskedTokens, compute_losses, mask_tokens
from cmpagl_core.models.cmpagl import ImageEncoding, TextEncoding
from cmpagl_core.training.learner import Learner
from cmpagl_core.training.optim import set_rate
from cmpagl_core.training.texts import encode_batch_texts

_MODEL_STREAM = 3  # keeps dropout, drop path, masking and hard negatives apart from the loader's choices


@dataclass(frozen=True)
class StepFigures:
    """What a step showed; the losses are means over its micro-batches."""

    loss: float
    terms: dict[str, float]
    unmatched_cosine: float
    gradient_shares: dict[str, float]  # empty unless asked for


@dataclass(frozen=True)
class Forward:
    """What the model says of a micro-batch."""

    images: ImageEncoding
    texts: TextEncoding
    losses: LossTerms


def accumulate(learner: Learner, batches: Sequence[PairBatch], epoch: int, step: int, probe: bool) -> StepFigures:
    """Gradients of the mean loss over micro-batches; random numbers by seed, epoch and step alone.

    probe: also measure each loss's share of the gradient, on the first micro-batch. ITC, triplet and ITM see the
    negatives of their micro-batch; MLM is normalised over all tokens of the step, so accumulation changes nothing.
    Raises CmpaglError when the loss is not a number.
    """
    where = f"step {step + 1} of epoch {epoch + 1}"
    learner.optimizer.zero_grad(set_to_none=True)
    generator = torch.Generator().manual_seed(_seed(learner, epoch, step))
    torch.manual_seed(_seed(learner, epoch, step))
    on_device = [batch.to(learner.device) for batch in batches]
    masked = [_mask(learner, batch, generator) for batch in on_device]
    tokens = sum(int(mask.chosen.sum()) for mask in masked if mask is not None) / len(batches)
    sums: dict[str, Tensor] = {}
    shares: dict[str, float] = {}
    for number, (batch, mask) in enumerate(zip(on_device, masked, strict=True)):
        forward = _forward(learner, batch, mask, generator, tokens, where)
        if probe and number == 0 and learner.losses_meet:
            shares = gradient_shares(forward.losses.weighted, forward.images.tokens)
        torch.autograd.backward(learner.scaler.scale(forward.losses.total / len(batches)))
        seen = {"loss": forward.losses.total.detach(), **forward.losses.terms}
        seen["unmatched_cosine"] = unmatched_cosine(forward, batch.positives)
        for name, value in seen.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value / len(batches)
    figures = dict(zip(sums, torch.stack([value.float() for value in sums.values()]).tolist(), strict=True))
    loss, cosine = figures.pop("loss"), figures.pop("unmatched_cosine")
    if not math.isfinite(loss):
        listed = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        raise CmpaglError(f"the loss is no finite number at {where} ({listed})", hint=_CALMER)
    return StepFigures(loss, figures, cosine, shares)


def update(learner: Learner, step: int, share: float) -> float:
    """Clip, take AdamW's step at `share` of the peak rates, average. Returns the gradient's norm before clipping.

    Raises CmpaglError when the gradient is not finite where no scaler would skip such a step.
    """
    learner.scaler.unscale_(learner.optimizer)
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, learner.recipe.optim.clip_norm))
    if not math.isfinite(norm) and not learner.scaler.is_enabled():
        raise CmpaglError(f"the gradient is no finite number at step {step + 1}", hint=_CALMER)
    set_rate(learner.optimizer, share)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.model.clamp_logit_scale()
    if learner.average is not None:
        learner.average.update(learner.model, step)
    return norm


def gradient_shares(weighted: dict[str, Tensor], image_tokens: Tensor) -> dict[str, float]:
    """Each loss's share of the gradient norms that reach the image tokens, where all losses meet; they sum to 1."""
    if not image_tokens.requires_grad:
        return {}
    norms: dict[str, float] = {}
    for name, loss in weighted.items():
        gradient = None
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, [image_tokens], retain_graph=True, allow_unused=True)
        norms[name] = 0.0 if gradient is None else float(gradient.float().norm())
    total = sum(norms.values())
    return {name: norm / total for name, norm in norms.items()} if 0 < total < math.inf else {}


@torch.no_grad()
def unmatched_cosine(forward: Forward, positives: Tensor) -> Tensor:
    """Mean cosine of the images and captions that do not match: near 1 when features have collapsed."""
    unmatched = ~positives
    scores = forward.images.features.float() @ forward.texts.features.float().t()
    return (scores * unmatched).sum() / unmatched.sum().clamp(min=1)


def _forward(
    learner: Learner,
    batch: PairBatch,
    masked: MaskedTokens | None,
    generator: torch.Generator,
    tokens: float,
    where: str,
) -> Forward:
    with autocast(learner.device, learner.recipe.train.precision):
        images = learner.encode(batch.images)
        texts = encode_batch_texts(learner.model, batch.input_ids, batch.attention_mask)
        if not bool(torch.isfinite(images.features.sum() + texts.features.sum())):
            raise CmpaglError(f"the features are no finite numbers at {where}", hint=_CALMER)
        losses = compute_losses(
            learner.model,
            learner.recipe.losses,
            images,
            texts,
            batch.input_ids,
            batch.positives,
            masked,
            generator,
            mlm_normaliser=tokens,
        )
    return Forward(images, texts, losses)


def _mask(learner: Learner, batch: PairBatch, generator: torch.Generator) -> MaskedTokens | None:
    part, tokenizer = learner.recipe.losses, learner.tokenizer
    if part.mlm == 0:
        return None
    return mask_tokens(
        batch.input_ids,
        batch.attention_mask,
        part.mlm_probability,
        tokenizer.mask_id,
        (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id),
        tokenizer.vocab_size,
        generator,
    )


def _seed(learner: Learner, epoch: int, step: int) -> int:
    sequence = np.random.SeedSequence([learner.recipe.train.seed, _MODEL_STREAM, epoch, step])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


_CALMER = "train again with a lower optim.lr, a longer optim.warmup_fraction, or train.precision=fp32"
