"""One optimiser step: forward and backward over its micro-batches, then clipping, AdamW and the moving average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmpagl_core.datasets.loading import PairBatch
from cmpagl_core.errors import CmpaglError
from cmpagl_core.losses import MaskedTokens
from cmpagl_core.ranks import ALONE, Ranks
from cmpagl_core.training.grad_cache import CachedStep
from cmpagl_core.training.learner import Learner
from cmpagl_core.training.objective import Encoded, LossTerms, mask_batch
from cmpagl_core.training.optim import set_rate
from cmpagl_core.training.parallel import STABILISE, objective_of, sum_gradients, unsynchronised, widened

_MODEL_STREAM = 3  # separates the random numbers of the model from those of the loader


@dataclass(frozen=True)
class StepFigures:
    """Statistics of a step; the losses are means over its micro-batches."""

    loss: float
    terms: dict[str, float]
    unmatched_cosine: float
    gradient_shares: dict[str, float]  # empty unless asked for


def accumulate(learner: Learner, batches: Sequence[PairBatch], epoch: int, step: int, with_shares: bool) -> StepFigures:
    """Gradients of the mean loss over micro-batches; random numbers depend on seed, epoch and step alone.

    with_shares: also measure each loss's share of the gradient, on the first micro-batch. ITC,
    triplet and ITM see the negatives of their micro-batch; MLM is normalised over all tokens of the step, so
    accumulation does not change it.
    Raises CmpaglError if features or loss are not finite.
    """
    cfg, ranks, where = learner.recipe.losses, learner.ranks, f"step {step + 1} of epoch {epoch + 1}"
    generator = seed_step(learner.recipe.train.seed, epoch, step, ranks.rank)
    learner.optimizer.zero_grad(set_to_none=True)
    batches = [batch.to(learner.device) for batch in batches]
    if not ranks.alone:
        batches = widened(batches, learner.tokenizer, learner)
    masked = [mask_batch(cfg, learner.tokenizer, batch, generator) for batch in batches]
    tokens = _tokens(masked, learner) / len(batches)
    cached = learner.recipe.train.chunk_size > 0
    backward = _backward_cached if cached else _backward_whole
    work = list(zip(batches, masked, strict=True))
    seen, shares = backward(learner, work, generator, tokens, where, with_shares)
    if not ranks.alone:
        seen = _joint_figures(seen, ranks)
    return _summarised(seen, shares, where)


_Work = Sequence[tuple[PairBatch, MaskedTokens | None]]
_Seen = tuple[list[dict[str, Tensor]], dict[str, float]]


def _backward_whole(
    learner: Learner, work: _Work, generator: torch.Generator, tokens: float, where: str, with_shares: bool
) -> _Seen:
    """Gradients of the micro-batches, each encoded at once; their figures, and each loss's share of the gradient."""
    ranks, objective = learner.ranks, objective_of(learner)
    shares: dict[str, float] = {}
    seen: list[dict[str, Tensor]] = []
    for number, (batch, mask) in enumerate(work):
        with unsynchronised(objective, is_last=number == len(work) - 1):
            losses, encoded = objective(batch, mask, generator, tokens, where)
            if with_shares and number == 0 and learner.losses_meet:
                shares = gradient_shares(losses.weighted, encoded.images.tokens, ranks)
            # DistributedDataParallel averages the gradients, and those of shares are to be summed
            torch.autograd.backward(learner.scaler.scale(losses.total / len(work) * ranks.count))
        seen.append(_figures(losses, encoded, batch.positives))
    return seen, shares


def _backward_cached(
    learner: Learner, work: _Work, generator: torch.Generator, tokens: float, where: str, with_shares: bool
) -> _Seen:
    """The same with GradCache."""
    seen, shares = [], {}
    for number, (batch, mask) in enumerate(work):
        measures = with_shares and number == 0 and learner.losses_meet
        cached = CachedStep(learner, batch, mask, generator, tokens, len(work), measures)
        losses, encoded, squares = cached.backward(where)
        if measures:
            shares = _shares(squares, learner.ranks)
        seen.append(_figures(losses, encoded, batch.positives))
    sum_gradients(learner)
    return seen, shares


def update(learner: Learner, step: int, share: float) -> float:
    """Clip, step AdamW at `share` of the peak rates, update the average. Returns the gradient norm before clipping.

    Raises CmpaglError for a gradient that is not finite, unless a gradient scaler skips such steps.
    """
    learner.scaler.unscale_(learner.optimizer)
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, learner.recipe.optim.clip_norm))
    if not math.isfinite(norm) and not learner.scaler.is_enabled():
        raise CmpaglError(f"the gradient is not finite at step {step + 1}", hint=STABILISE)
    set_rate(learner.optimizer, share)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.model.clamp_logit_scale()
    if learner.average is not None:
        learner.average.update(learner.model, step)
    return norm


def seed_step(seed: int, epoch: int, step: int, rank: int = 0) -> torch.Generator:
    """Seed torch for dropout and drop path; returns the CPU generator for masks and hard negatives.

    rank: each process of a training has numbers of its own.
    """
    sequence = np.random.SeedSequence([seed, _MODEL_STREAM, epoch, step, *([rank] if rank else [])])
    number = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
    torch.manual_seed(number)
    return torch.Generator().manual_seed(number)


def gradient_shares(weighted: dict[str, Tensor], image_tokens: Tensor, ranks: Ranks = ALONE) -> dict[str, float]:
    """Each loss's share of the gradient norm at the image tokens, through which all losses act; they sum to 1."""
    if not image_tokens.requires_grad:
        return {}
    squares: dict[str, Tensor] = {}
    for name, loss in weighted.items():
        gradient = None
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, [image_tokens], retain_graph=True, allow_unused=True)
        squares[name] = image_tokens.new_zeros(()) if gradient is None else gradient.float().square().sum()
    return _shares(squares, ranks)


def _shares(squares: dict[str, Tensor], ranks: Ranks) -> dict[str, float]:
    """Of norms, from the squares of this process's; they are added up. None where the encoder does not learn."""
    if not squares:
        return {}
    norms = ranks.total(torch.stack([square.float() for square in squares.values()])).sqrt().tolist()
    total = sum(norms)
    return {name: norm / total for name, norm in zip(squares, norms, strict=True)} if 0 < total < math.inf else {}


@torch.no_grad()
def unmatched_cosine(encoded: Encoded, positives: Tensor) -> Tensor:
    """Mean cosine of images and captions that do not match; near 1 if the features have collapsed."""
    unmatched = ~positives
    scores = encoded.images.features.float() @ encoded.texts.features.float().t()
    return (scores * unmatched).sum() / unmatched.sum().clamp(min=1)


def _tokens(masked: Sequence[MaskedTokens | None], learner: Learner) -> int:
    """Tokens to predict in this step, in all processes."""
    own = sum(int(mask.chosen.sum()) for mask in masked if mask is not None)
    return own if learner.ranks.alone else int(learner.ranks.total(torch.tensor(own, device=learner.device)))


def _joint_figures(seen: Sequence[dict[str, Tensor]], ranks: Ranks) -> list[dict[str, Tensor]]:
    """The figures of joint micro-batches from the shares of all processes."""
    names = list(seen[0])
    sums = ranks.total(torch.stack([torch.stack([one[name].float() for name in names]) for one in seen]))
    found = [dict(zip(names, row, strict=True)) for row in sums]
    for one in found:
        one["unmatched_cosine"] = one.pop("unmatched_sum") / one.pop("unmatched_count").clamp(min=1)
    return found


def _figures(losses: LossTerms, encoded: Encoded, positives: Tensor) -> dict[str, Tensor]:
    if losses.unmatched is not None:
        total, count = losses.unmatched
        return {"loss": losses.total.detach(), **losses.terms, "unmatched_sum": total, "unmatched_count": count}
    cosine = unmatched_cosine(encoded, positives)
    return {"loss": losses.total.detach(), **losses.terms, "unmatched_cosine": cosine}


def _summarised(seen: Sequence[dict[str, Tensor]], shares: dict[str, float], where: str) -> StepFigures:
    """Means over micro-batches, transferred from the device in one go."""
    means = torch.stack([torch.stack([one[name].float() for one in seen]).mean() for name in seen[0]]).tolist()
    figures: dict[str, float] = dict(zip(seen[0], means, strict=True))
    loss, cosine = figures.pop("loss"), figures.pop("unmatched_cosine")
    if not math.isfinite(loss):
        listed = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        raise CmpaglError(f"the loss is not finite at {where} ({listed})", hint=STABILISE)
    return StepFigures(loss, figures, cosine, shares)
