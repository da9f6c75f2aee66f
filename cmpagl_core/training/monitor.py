"""Detects failure signatures of a training and warns once about each, with its likely cause (ours)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

COLLAPSED_COSINE = 0.9
CLAMP_SHARE = 0.999
DOMINATING_SHARE = 0.95
DEAD_GATE = 1.0e-3
STARVING_SHARE = 0.5
SPIKE_FACTOR = 10.0
FALLS_IN_A_ROW = 3
GUESSING_LOSS = -math.log(1 / 3) / 3 - 2 * math.log(2 / 3) / 3  # of ITM: one pair in three matches
GUESSING_SHARE = 0.98
GUESSES_IN_A_ROW = 3

_SPIKE_WINDOW = 100
_SPIKE_MINIMUM = 20


@dataclass(frozen=True)
class TrainingWarning:
    """A failure signature: its short name, and the sentence for the user."""

    name: str
    sentence: str


@dataclass(frozen=True)
class EpochFigures:
    """Statistics of an epoch, averaged over its steps unless stated otherwise."""

    epoch: int
    warmed_up: bool  # the warm-up of the rate is over
    loss: float
    terms: Mapping[str, float]
    unmatched_cosine: float  # mean cosine of pairs that do not match
    logit_scale: float
    logit_scale_max: float
    gradient_shares: Mapping[str, float]  # of each loss in what reaches the image tokens; sums to 1
    gates: Mapping[str, float]  # mean size of the global window's gates by stage; empty without one
    waiting_share: float  # of the time, spent waiting for the loader


@dataclass
class TrainingMonitor:
    """Keeps the little history that the checks need; each warning is given once per run."""

    told: list[str] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    validations: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    guesses: int = 0  # epochs in a row in which the matching head did no better than guessing

    def state(self) -> dict[str, Any]:
        """The state for resuming, as JSON."""
        return asdict(self)

    def step(self, step: int, gradient_norm: float) -> list[TrainingWarning]:
        """Check the gradient norm before clipping (not finite after an fp16 overflow, which is no spike)."""
        known = self.gradient_norms
        usual = statistics.median(known) if len(known) >= _SPIKE_MINIMUM else None
        warnings = []
        if usual is not None and SPIKE_FACTOR * usual < gradient_norm < float("inf"):
            warnings.append(
                TrainingWarning(
                    "gradient spike",
                    f"gradient spike: its norm at step {step} is {gradient_norm:.3g}, {gradient_norm / usual:.0f} "
                    f"times the usual; the learning rate is likely too high (optim.lr) or the warm-up too short "
                    f"(optim.warmup_fraction)",
                )
            )
        if gradient_norm < float("inf"):
            self.gradient_norms = [*known, gradient_norm][-_SPIKE_WINDOW:]
        return self._new(warnings)

    def epoch(self, figures: EpochFigures) -> list[TrainingWarning]:
        """Check a finished epoch."""
        idle = figures.warmed_up and _guesses(figures.terms)
        self.guesses = self.guesses + 1 if idle else 0
        looks = (_collapsed, _clamped, _dominated, _dead_gates, _starved)
        warnings = [warning for look in looks if (warning := look(figures)) is not None]
        return self._new(warnings + ([_idle_matching(figures)] if self.guesses >= GUESSES_IN_A_ROW else []))

    def validation(self, mr: float, loss: float) -> list[TrainingWarning]:
        """Check a validation: mR in percent, and the training loss since the last one."""
        self.validations = [*self.validations, mr][-FALLS_IN_A_ROW - 1 :]
        self.losses = [*self.losses, loss][-FALLS_IN_A_ROW - 1 :]
        warnings = []
        if len(self.validations) > FALLS_IN_A_ROW and _falling(self.validations) and _falling(self.losses):
            warnings.append(
                TrainingWarning(
                    "overfitting",
                    f"overfitting: validation mR fell {FALLS_IN_A_ROW} times in a row, to {mr:.2f}, while the loss "
                    f"fell to {loss:.3g}; likely too many epochs or too little regularisation (train.patience_epochs, "
                    f"image_encoder.drop_path, optim.weight_decay)",
                )
            )
        return self._new(warnings)

    def _new(self, warnings: list[TrainingWarning]) -> list[TrainingWarning]:
        new = [warning for warning in warnings if warning.name not in self.told]
        self.told.extend(warning.name for warning in new)
        return new


def _collapsed(figures: EpochFigures) -> TrainingWarning | None:
    if not figures.unmatched_cosine > COLLAPSED_COSINE:
        return None
    return TrainingWarning(
        "collapsed features",
        f"collapsed features: pairs that do not match have a mean cosine of {figures.unmatched_cosine:.2f} after "
        f"epoch {figures.epoch}; likely the learning rate is too high (optim.lr), or no loss separates them "
        f"(losses.itc)",
    )


def _clamped(figures: EpochFigures) -> TrainingWarning | None:
    if figures.logit_scale < CLAMP_SHARE * figures.logit_scale_max:
        return None
    return TrainingWarning(
        "logit scale at its clamp",
        f"logit scale at its clamp: {figures.logit_scale:.1f} after epoch {figures.epoch}; likely the training pairs "
        f"are separated and the model overfits (fewer epochs, more augmentation), or losses.logit_scale_max is too low",
    )


def _dominated(figures: EpochFigures) -> TrainingWarning | None:
    if len(figures.gradient_shares) < 2:
        return None
    name, share = max(figures.gradient_shares.items(), key=lambda item: item[1])
    if share <= DOMINATING_SHARE:
        return None
    return TrainingWarning(
        "one loss dominates",
        f"one loss dominates: {name} makes up {100 * share:.0f} % of the gradient at the image tokens in epoch "
        f"{figures.epoch}; likely its weight is too large relative to the others (losses.{_WEIGHTS.get(name, name)})",
    )


def _dead_gates(figures: EpochFigures) -> TrainingWarning | None:
    dead = [stage for stage, size in figures.gates.items() if size < DEAD_GATE]
    if not figures.warmed_up or not dead:
        return None
    return TrainingWarning(
        "dead global window",
        f"dead global window: the gates of {', '.join(dead)} are still under {DEAD_GATE:g} after epoch "
        f"{figures.epoch}; likely the learning rate is too low (optim.lr) or the training too short",
    )


def _starved(figures: EpochFigures) -> TrainingWarning | None:
    if figures.waiting_share <= STARVING_SHARE:
        return None
    return TrainingWarning(
        "starving loader",
        f"starving loader: {100 * figures.waiting_share:.0f} % of epoch {figures.epoch} was spent waiting for images; "
        f"likely too few decoding threads (data.workers), or a slow disk",
    )


def _idle_matching(figures: EpochFigures) -> TrainingWarning:
    return TrainingWarning(
        "idle matching head",
        f"idle matching head: after epoch {figures.epoch} ITM's loss is {figures.terms['itm']:.3f}, chance is "
        f"{GUESSING_LOSS:.3f}; likely its hard negatives are near-duplicates of the matches, or the training is too "
        f"short (train.epochs, losses.itm); rankings by ITM and `cmpagl explain` then mean little",
    )


def matching_is_idle(events: Iterable[Mapping[str, Any]]) -> bool:
    """Whether ITM was at chance in a training's last epoch, by the events of its log; False if the log lacks it."""
    terms: Mapping[str, float] = {}
    for event in events:
        if event["event"] == "epoch":
            terms = event.get("terms", {})
    return _guesses(terms)


def _guesses(terms: Mapping[str, float]) -> bool:
    return terms.get("itm", 0.0) > GUESSING_SHARE * GUESSING_LOSS


def _falling(values: list[float]) -> bool:
    return all(later < earlier for earlier, later in pairwise(values))


_WEIGHTS = {"triplet": "triplet_weight"}
