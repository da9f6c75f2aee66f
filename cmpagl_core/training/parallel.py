"""The forward pass of a batch as a module, which DistributedDataParallel wraps for several processes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cmpagl_core.datasets.loading import PairBatch
from cmpagl_core.device import autocast
from cmpagl_core.errors import CmpaglError
from cmpagl_core.losses import MaskedTokens
from cmpagl_core.models.tokenizer import CaptionTokenizer
from cmpagl_core.training.joint_objective import compute_share
from cmpagl_core.training.learner import Learner
from cmpagl_core.training.objective import Encoded, LossTerms, compute_losses, encode_batch_texts

STABILISE = "train again with a lower optim.lr, a longer optim.warmup_fraction, or train.precision=fp32"
_BUCKET_VALUES = 1 << 23  # gradients that are summed at once


class Objective(nn.Module):
    """From a batch to its losses; its parameters are the model's."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.model = learner.model
        self._learner = learner

    def forward(
        self,
        batch: PairBatch,
        masked: MaskedTokens | None,
        generator: torch.Generator,
        mlm_normaliser: float,
        where: str,
    ) -> tuple[LossTerms, Encoded]:
        """Raises CmpaglError if features are not finite. where: names the step in that sentence."""
        learner, cfg = self._learner, self._learner.recipe.losses
        with autocast(learner.device, learner.recipe.train.precision):
            images = learner.encode(batch.images)
            texts = encode_batch_texts(learner.model, batch.input_ids, batch.attention_mask)
            encoded = Encoded(images, texts)
            if not encoded.is_finite:
                raise CmpaglError(f"the features are not finite at {where}", hint=STABILISE)
            if batch.joint is None:
                losses = compute_losses(self.model, cfg, encoded, batch, masked, generator, mlm_normaliser)
            else:
                losses = compute_share(
                    self.model, cfg, encoded, batch, batch.joint, masked, generator, mlm_normaliser, learner.ranks
                )
        return losses, encoded


@dataclass(frozen=True)
class Wrapped:
    """An objective over several processes, and the parameters that it was wrapped for."""

    module: DistributedDataParallel
    learning: tuple[str, ...]


def objective_of(learner: Learner) -> nn.Module:
    """The learner's objective, wrapped again where parameters were frozen or unfrozen since."""
    if learner.ranks.alone:
        return Objective(learner)
    learning = tuple(name for name, parameter in learner.model.named_parameters() if parameter.requires_grad)
    if not isinstance(learner.wrapped, Wrapped) or learner.wrapped.learning != learning:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer torch has another name for broadcast_buffers too
            module = DistributedDataParallel(Objective(learner), broadcast_buffers=False, gradient_as_bucket_view=True)
        learner.wrapped = Wrapped(module, learning)
    return learner.wrapped.module


def unsynchronised(objective: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Adds up gradients of micro-batches without exchanging them, but for the last."""
    if is_last or not isinstance(objective, DistributedDataParallel):
        return nullcontext()
    context: AbstractContextManager[None] = objective.no_sync()
    return context


def sum_gradients(learner: Learner) -> None:
    """The sum over all processes of the gradients that each has made without DistributedDataParallel."""
    if learner.ranks.alone:
        return
    bucket: list[Tensor] = []
    for parameter in learner.model.parameters():
        if parameter.requires_grad:
            bucket.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
            parameter.grad = bucket[-1]
            if sum(one.numel() for one in bucket) > _BUCKET_VALUES:
                _sum(bucket, learner)
                bucket = []
    _sum(bucket, learner)


def _sum(bucket: Sequence[Tensor], learner: Learner) -> None:
    if not bucket:
        return
    summed = learner.ranks.total(torch.cat([gradient.flatten() for gradient in bucket]))
    for gradient, values in zip(bucket, torch.split(summed, [one.numel() for one in bucket]), strict=True):
        gradient.copy_(values.view_as(gradient))


def widened(batches: Sequence[PairBatch], tokenizer: CaptionTokenizer, learner: Learner) -> list[PairBatch]:
    """The batches with their captions padded to one width in all processes."""
    widths = learner.ranks.greatest([batch.input_ids.shape[1] for batch in batches])
    return [_padded(batch, int(width), tokenizer.pad_id) for batch, width in zip(batches, widths, strict=True)]


def _padded(batch: PairBatch, width: int, pad_id: int) -> PairBatch:
    missing = width - batch.input_ids.shape[1]
    if missing == 0:
        return batch

    def pad(rows: Tensor, value: int) -> Tensor:
        return F.pad(rows, (0, missing), value=value)

    return replace(batch, input_ids=pad(batch.input_ids, pad_id), attention_mask=pad(batch.attention_mask, 0))
