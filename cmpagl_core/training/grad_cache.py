"""GradCache: the exact gradient of a large batch with the memory of a small one [Gao et al. 2021, arXiv 2101.06983].

The encoders run over chunks without a graph; the losses of the whole batch give the gradient at their output, and each
chunk is encoded again, with the same random numbers, to carry it on. The paper has contrastive losses alone; ITM and
MLM, which read the tokens of single pairs, are computed chunk by chunk on the kept tokens (ours).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cmpagl_core.datasets.loading import JointBatch, PairBatch
from cmpagl_core.device import autocast
from cmpagl_core.errors import CmpaglError
from cmpagl_core.losses import ItmPairs, MaskedTokens
from cmpagl_core.models.cmpagl import ImageEncoding, TextEncoding
from cmpagl_core.training.joint_objective import Matching, match_share, mlm_share, score_share
from cmpagl_core.training.learner import Learner
from cmpagl_core.training.objective import Encoded, LossTerms, encode_batch_texts
from cmpagl_core.training.parallel import STABILISE


@dataclass(frozen=True)
class CachedStep:
    """One micro-batch of a step: its gradients are those of its loss / divisor.

    with_squares: also measure the gradient that each loss leaves at the image tokens.
    """

    learner: Learner
    batch: PairBatch
    masked: MaskedTokens | None
    generator: torch.Generator
    mlm_normaliser: float
    divisor: int
    with_squares: bool = False

    @property
    def chunk_size(self) -> int:
        return self.learner.recipe.train.chunk_size

    def backward(self, where: str) -> tuple[LossTerms, Encoded, dict[str, Tensor]]:
        """Add the gradients to the model's; returns the losses and the encoded batch, without graphs, and the squares.

        The squares are the squared norms of what this process's image tokens get from each loss, to a common factor.
        Of several processes each adds its own share, so they are to be summed; all call this at the same time. where:
        names the step when features are not finite, which raises CmpaglError.
        """
        learner, batch, cfg = self.learner, self.batch, self.learner.recipe.losses
        chunks = [_Chunk(learner, batch, rows) for rows in self._slices()]
        kept = _joined([chunk.encode() for chunk in chunks])
        if not kept.is_finite:
            raise CmpaglError(f"the features are not finite at {where}", hint=STABILISE)
        joint = batch.joint or JointBatch((len(batch),), 0, batch.positives.t())
        with self._autocast():
            scored = score_share(learner.model, cfg, kept, batch, joint, self.generator, learner.ranks)
        left = _Left()
        if self.with_squares:
            left.by_features = {name: self._at_features(loss, kept) for name, loss in scored.weighted.items()}
        if scored.weighted:
            self._run_backward(torch.stack(list(scored.weighted.values())).sum())
        terms = scored.terms | self._backward_fusion(kept, scored.matching, left)
        for chunk in chunks:
            chunk.backward(kept, left)
        weights = {
            "itc": cfg.itc,
            "triplet": cfg.triplet_weight,
            "hubness": cfg.hubness,
            "itm": cfg.itm,
            "mlm": cfg.mlm,
        }
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        return LossTerms(total, terms, {}, None if batch.joint is None else scored.unmatched), kept, left.squares

    def _at_features(self, loss: Tensor, kept: Encoded) -> Tensor | None:
        features = kept.images.features
        if not loss.requires_grad:
            return None
        return torch.autograd.grad(self._scaled(loss), features, retain_graph=True, allow_unused=True)[0]

    def _backward_fusion(self, kept: Encoded, matching: Matching | None, left: _Left) -> dict[str, Tensor]:
        """ITM and MLM by chunks; their gradient is left at the kept tokens, in other processes too."""
        if not self.learner.recipe.losses.uses_fusion:
            return {}
        terms: dict[str, Tensor] = {}
        texts = kept.texts if matching is None else matching.texts
        images = _Collecting(kept.images.tokens if matching is None else matching.image_tokens)
        if matching is not None:
            words = _Collecting(texts.tokens)
            terms["itm"] = self._backward_itm(matching, images, words)
            if self.with_squares:
                left.by_tokens["itm"] = _at_own_tokens(kept, matching, images.gradient.clone())
        if self.masked is not None:
            terms["mlm"] = self._backward_mlm(self.masked, images)
            if self.with_squares:
                by_both = _at_own_tokens(kept, matching, images.gradient)
                left.by_tokens["mlm"] = by_both - left.by_tokens["itm"] if "itm" in left.by_tokens else by_both
        if matching is None:
            _backward((kept.images.tokens, images.gradient))
        else:
            _backward((matching.image_tokens, images.gradient), (matching.texts.tokens, words.gradient))
        return terms

    def _backward_itm(self, matching: Matching, images: _Collecting, words: _Collecting) -> Tensor:
        losses, pairs = [], matching.pairs
        for rows in torch.split(torch.arange(len(pairs.matches), device=pairs.matches.device), 2 * self.chunk_size):
            image_rows, image_of = torch.unique(pairs.images[rows], return_inverse=True)
            text_rows, text_of = torch.unique(pairs.texts[rows], return_inverse=True)
            with images.lent(image_rows) as image_tokens, words.lent(text_rows) as text_tokens:
                mask = matching.texts.attention_mask[text_rows]
                texts = replace(matching.texts, tokens=text_tokens, attention_mask=mask)
                some = Matching(texts, image_tokens, ItmPairs(image_of, text_of, pairs.matches[rows]), matching.total)
                with self._autocast():
                    keys = self.learner.model.cross_attention_cache(image_tokens)
                    losses.append(match_share(self.learner.model, some, keys))
                self._run_backward(self.learner.recipe.losses.itm * losses[-1])
        return torch.stack([loss.detach() for loss in losses]).sum()

    def _backward_mlm(self, masked: MaskedTokens, images: _Collecting) -> Tensor:
        losses, device = [], self.batch.input_ids.device
        for own in self._slices():
            with images.lent(torch.arange(own.start, own.stop, device=device)) as image_tokens:
                with self._autocast():
                    keys = self.learner.model.cross_attention_cache(image_tokens)
                    losses.append(mlm_share(self.learner.model, self.batch, masked, keys, self.mlm_normaliser, own))
                self._run_backward(self.learner.recipe.losses.mlm * losses[-1])
        return torch.stack([loss.detach() for loss in losses]).sum()

    def _run_backward(self, loss: Tensor) -> None:
        if loss.requires_grad:
            torch.autograd.backward(self._scaled(loss))

    def _scaled(self, loss: Tensor) -> Tensor:
        return self.learner.scaler.scale(loss / self.divisor)

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(self.learner.device, self.learner.recipe.train.precision)

    def _slices(self) -> list[slice]:
        return [
            slice(start, min(start + self.chunk_size, len(self.batch)))
            for start in range(0, len(self.batch), self.chunk_size)
        ]


class _Collecting:
    """Rows that are lent chunk by chunk, and the sum of the gradients with which they come back."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows.detach()
        self.gradient = torch.zeros_like(self._rows)

    @contextmanager
    def lent(self, places: Tensor) -> Iterator[Tensor]:
        """The rows at `places`, all different; the block runs backward."""
        rows = self._rows[places].requires_grad_()
        yield rows
        if rows.grad is not None:
            self.gradient[places] += rows.grad


@dataclass
class _Left:
    """What single losses leave at the image features or the image tokens, and its squared norms at the tokens."""

    by_features: dict[str, Tensor | None] = field(default_factory=dict)
    by_tokens: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, Tensor] = field(default_factory=dict)

    def add(self, images: ImageEncoding, rows: slice) -> None:
        """Add the squares of some images. images: encoded with their graph."""
        if not images.tokens.requires_grad:
            return
        for name, gradient in self.by_features.items():
            at_tokens = None
            if gradient is not None:
                (at_tokens,) = torch.autograd.grad(
                    images.features, images.tokens, gradient[rows], retain_graph=True, allow_unused=True
                )
            self._count(name, images.tokens.new_zeros(()) if at_tokens is None else at_tokens)
        for name, gradient in self.by_tokens.items():
            self._count(name, gradient[rows])

    def _count(self, name: str, gradient: Tensor) -> None:
        square = gradient.float().square().sum()
        self.squares[name] = self.squares[name] + square if name in self.squares else square


@dataclass
class _Chunk:
    """Some pairs of a batch, which are encoded twice with the same random numbers."""

    learner: Learner
    batch: PairBatch
    rows: slice
    random: tuple[Tensor, Tensor | None] | None = None  # states on the CPU and the GPU

    def encode(self) -> Encoded:
        """Encode without a graph, having noted the state of the random numbers."""
        device = self.learner.device
        self.random = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        with torch.no_grad():
            return self._encode()

    def backward(self, kept: Encoded, left: _Left) -> None:
        """Encode again, and carry the gradient of the kept encodings into the model. left: gets the squares."""
        with self._again():
            found = self._encode()
        left.add(found.images, self.rows)
        outputs = [(found.images.tokens, kept.images.tokens), (found.images.features, kept.images.features)]
        outputs += [(found.texts.tokens, kept.texts.tokens), (found.texts.features, kept.texts.features)]
        _backward(*((new, None if old.grad is None else old.grad[self.rows, ..., :]) for new, old in outputs))

    def _encode(self) -> Encoded:
        batch, rows, learner = self.batch, self.rows, self.learner
        with autocast(learner.device, learner.recipe.train.precision):
            images = learner.encode(batch.images[rows])
            texts = encode_batch_texts(learner.model, batch.input_ids[rows], batch.attention_mask[rows])
        return Encoded(images, texts)

    @contextmanager
    def _again(self) -> Iterator[None]:
        if self.random is None:
            raise ValueError("a chunk is encoded before its gradient is known")
        on_cpu, on_gpu = self.random
        with torch.random.fork_rng(devices=[] if on_gpu is None else [self.learner.device]):
            torch.set_rng_state(on_cpu)
            if on_gpu is not None:
                torch.cuda.set_rng_state(on_gpu, self.learner.device)
            yield


def _joined(parts: list[Encoded]) -> Encoded:
    """The encodings of all chunks as one batch, whose tensors collect their gradient."""

    def join(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors).requires_grad_()

    images, texts = [part.images for part in parts], [part.texts for part in parts]
    return Encoded(
        ImageEncoding(join([one.tokens for one in images]), join([one.features for one in images])),
        TextEncoding(
            join([one.tokens for one in texts]),
            join([one.features for one in texts]),
            torch.cat([one.attention_mask for one in texts]),
        ),
    )


def _at_own_tokens(kept: Encoded, matching: Matching | None, gradient: Tensor) -> Tensor:
    """The gradient at this process's image tokens of one at all tokens that ITM reads. Collective."""
    own = kept.images.tokens
    if matching is None or matching.image_tokens is own:
        return gradient
    found: Tensor = torch.autograd.grad(matching.image_tokens, own, gradient, retain_graph=True)[0]
    return found


def _backward(*outputs: tuple[Tensor, Tensor | None]) -> None:
    """Backward from all outputs that have a graph and a gradient."""
    given = [(output, gradient) for output, gradient in outputs if output.requires_grad and gradient is not None]
    if given:
        torch.autograd.backward([output for output, _ in given], [gradient for _, gradient in given])
