"""Both directions of a score matrix, and re-rankings by name, alone or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, cast, get_args

from cmpagl_core.errors import UsageError
from cmpagl_core.ranking.galr import galr
from cmpagl_core.ranking.offsets import csls, dual_softmax, sinkhorn
from cmpagl_core.ranking.rank_stats import RankStats
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.ranking.smr import SmrForm, smr

Tempered = Literal["dual_softmax", "sinkhorn"]
Reranking = Literal["smr", "galr", "csls", Tempered]
RERANKINGS: tuple[Reranking, ...] = get_args(Reranking)
TEMPERED: Mapping[Tempered, Callable[[ScoreMatrix, float], ScoreMatrix]] = {
    "dual_softmax": dual_softmax,
    "sinkhorn": sinkhorn,
}
"""The re-rankings that have a temperature, to be chosen on a selection split."""


@dataclass(frozen=True)
class Gammas:
    """SMR's form and parameters."""

    form: SmrForm
    gamma1: float
    gamma2: float


@dataclass(frozen=True)
class RerankParams:
    """What was chosen on some scores of the selection split; None where nothing was."""

    smr: Gammas | None = None
    dual_softmax: float | None = None  # its temperature
    sinkhorn: float | None = None  # its temperature
    smr_mr: float | None = field(default=None, compare=False)  # percent, with SMR on the selection split

    def temperature(self, name: Tempered) -> float | None:
        """That of a re-ranking that has one."""
        return self.dual_softmax if name == "dual_softmax" else self.sinkhorn

    def allows(self, name: Reranking) -> bool:
        """Whether a re-ranking has all its parameters."""
        if name in ("dual_softmax", "sinkhorn"):
            return self.temperature(name) is not None
        return name != "smr" or self.smr is not None


@dataclass(frozen=True)
class Step:
    """One re-ranking of a chain, its parameters, and which scores they were chosen on; None and empty: it has none."""

    reranking: Reranking
    smr: Gammas | None = None
    temperature: float | None = None
    chosen_on: str = ""

    @classmethod
    def of(cls, name: Reranking, params: RerankParams, chosen_on: str) -> Step:
        """The step with those of the parameters that it has."""
        if name == "smr":
            return cls(name, smr=params.smr, chosen_on=chosen_on)
        if name in ("dual_softmax", "sinkhorn"):
            return cls(name, temperature=params.temperature(name), chosen_on=chosen_on)
        return cls(name)

    @property
    def params(self) -> RerankParams:
        """As `rerank` takes them."""
        temperatures = {name: self.temperature for name in TEMPERED if name == self.reranking}
        return RerankParams(self.smr, **temperatures)


@dataclass(frozen=True)
class ChosenParams:
    """Parameters by the scores that they were chosen on: "cosine", "itm@16" (candidates), "cosine+csls".

    split_sha256: of the split that chose them; empty where nothing was chosen.
    """

    by_scores: Mapping[str, RerankParams] = field(default_factory=dict)
    split_sha256: str = ""

    def of(self, scores: str) -> RerankParams:
        """What was chosen on these very scores."""
        return self.by_scores.get(scores, RerankParams())

    def adding(self, scores: str, params: RerankParams) -> ChosenParams:
        """The same and these, in place of what was chosen on the same scores.

        What was chosen on scores after a re-ranking whose parameters change here is left out.
        """
        before = self.of(scores)
        changed = [name for name in RERANKINGS if Step.of(name, before, "") != Step.of(name, params, "")]
        stale = tuple(f"{scores}+{name}" for name in changed)
        kept = {key: its for key, its in self.by_scores.items() if not _is_of(key, stale)}
        return replace(self, by_scores={**kept, scores: params})

    def taking_over(self, before: ChosenParams, after: ChosenParams) -> ChosenParams:
        """The same and what was chosen from `before` to `after`; what somebody else chose meanwhile stays.

        Left out is what was chosen on scores after a re-ranking that has other parameters here.
        """
        both = self
        for scores in sorted(after.by_scores, key=lambda key: key.count("+")):
            old, new = vars(before.of(scores)), vars(after.of(scores))
            chosen: dict[str, Any] = {name: value for name, value in new.items() if value != old[name]}
            if chosen and both._agrees(after, scores):
                both = both.adding(scores, replace(both.of(scores), **chosen))
        return both

    def _agrees(self, other: ChosenParams, scores: str) -> bool:
        """Whether every re-ranking that led to these scores has the same parameters in both."""
        base, *names = scores.split("+")
        chain = cast("list[Reranking]", names)
        return all(
            Step.of(name, self.of(before), "") == Step.of(name, other.of(before), "")
            for name, before in zip(chain, reranking_inputs(base, chain), strict=True)
        )

    def lacks(self, base: str, chain: Sequence[Reranking]) -> bool:
        """Whether something that a chain needs was never chosen on what it re-ranks there."""
        inputs = reranking_inputs(base, chain)
        return not all(self.of(scores).allows(name) for scores, name in zip(inputs, chain, strict=True))

    def steps(self, base: str, chain: Sequence[Reranking], plain: str) -> tuple[Step, ...] | None:
        """The chain with its parameters: of what it re-ranks, else those of the `plain` scores; None without any."""
        steps = []
        for scores, name in zip(reranking_inputs(base, chain), chain, strict=True):
            source = scores if self.of(scores).allows(name) else plain
            if not self.of(source).allows(name):
                return None
            steps.append(Step.of(name, self.of(source), source))
        return tuple(steps)

    def holds(self, step: Step) -> bool:
        """Whether a step would have these parameters now."""
        return Step.of(step.reranking, self.of(step.chosen_on), step.chosen_on) == step


def _is_of(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}+") for prefix in prefixes)


def reranking_inputs(base: str, chain: Sequence[Reranking]) -> tuple[str, ...]:
    """What each re-ranking of a chain is applied to: "cosine", then "cosine+csls", ..."""
    return tuple("+".join((base, *chain[:place])) for place in range(len(chain)))


@dataclass(frozen=True, eq=False)
class Directions:
    """Scores of images x texts and of texts x images; the second is None where it is the first's transpose."""

    i2t: ScoreMatrix
    own_t2i: ScoreMatrix | None = None

    @cached_property
    def t2i(self) -> ScoreMatrix:
        return self.i2t.transposed() if self.own_t2i is None else self.own_t2i

    @cached_property
    def rank_stats(self) -> tuple[RankStats, RankStats]:
        """Ranks and ranges of both, worked out once for all re-rankings that stand on these scores."""
        forward = RankStats.of(self.i2t)
        return forward, forward.transposed() if self.own_t2i is None else RankStats.of(self.own_t2i)

    def by_symmetric(self, reranking: Callable[[ScoreMatrix], ScoreMatrix]) -> Directions:
        """Both directions by a re-ranking that does to transposed scores the transpose of what it does to scores."""
        return Directions(reranking(self.i2t), None if self.own_t2i is None else reranking(self.own_t2i))


def rerank(scores: Directions, name: Reranking, tuned: RerankParams) -> Directions:
    """One re-ranking of both directions. Raises UsageError for one whose parameters were never chosen."""
    if name == "csls":
        return scores.by_symmetric(csls)
    if name == "galr":
        return Directions(*(galr(side.scores, rank_stats=side) for side in scores.rank_stats))
    if name in ("dual_softmax", "sinkhorn") and (temperature := tuned.temperature(name)) is not None:
        return scores.by_symmetric(lambda side: TEMPERED[name](side, temperature))
    if name == "smr" and tuned.smr is not None:
        chosen = tuned.smr
        return Directions(
            *(smr(side.scores, chosen.gamma1, chosen.gamma2, chosen.form, side) for side in scores.rank_stats)
        )
    raise UsageError(
        f"the parameters of {name} were never chosen for these scores",
        hint="choose them on a selection split: a run keeps its own, for files give --choose-on",
    )


def parse_rerankings(text: str) -> tuple[Reranking, ...]:
    """Split "csls+smr" into its parts. Raises UsageError naming what there is."""
    parts = tuple(part.strip().replace("-", "_") for part in text.split("+"))
    found = tuple(name for part in parts for name in RERANKINGS if name == part)
    if len(found) != len(parts):
        raise UsageError(f"{text!r} is no re-ranking", hint=f"there is {', '.join(RERANKINGS)}, joined by '+'")
    return found
