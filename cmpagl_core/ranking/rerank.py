"""Re-rankings by name, alone or chained, on both directions of a score matrix."""

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
"""The re-rankings with a temperature, which is chosen on a selection split."""


@dataclass(frozen=True)
class Gammas:
    """SMR's form and parameters."""

    form: SmrForm
    gamma1: float
    gamma2: float


@dataclass(frozen=True)
class RerankParams:
    """Parameters chosen on some scores of the selection split; None if never chosen."""

    smr: Gammas | None = None
    dual_softmax: float | None = None  # its temperature
    sinkhorn: float | None = None  # its temperature
    smr_mr: float | None = field(default=None, compare=False)  # percent, with SMR on the selection split

    def temperature(self, name: Tempered) -> float | None:
        """The temperature of a re-ranking."""
        return self.dual_softmax if name == "dual_softmax" else self.sinkhorn

    def allows(self, name: Reranking) -> bool:
        """Whether all parameters of a re-ranking are known."""
        if name in ("dual_softmax", "sinkhorn"):
            return self.temperature(name) is not None
        return name != "smr" or self.smr is not None


@dataclass(frozen=True)
class Step:
    """One re-ranking of a chain with its parameters and the scores on which they were chosen; None and "" without."""

    reranking: Reranking
    smr: Gammas | None = None
    temperature: float | None = None
    chosen_on: str = ""

    @classmethod
    def of(cls, name: Reranking, params: RerankParams, chosen_on: str) -> Step:
        """The step with the parameters that this re-ranking uses."""
        if name == "smr":
            return cls(name, smr=params.smr, chosen_on=chosen_on)
        if name in ("dual_softmax", "sinkhorn"):
            return cls(name, temperature=params.temperature(name), chosen_on=chosen_on)
        return cls(name)

    @property
    def params(self) -> RerankParams:
        """The parameters as an argument of `rerank`."""
        temperatures = {name: self.temperature for name in TEMPERED if name == self.reranking}
        return RerankParams(self.smr, **temperatures)


@dataclass(frozen=True)
class ChosenParams:
    """Parameters by the scores on which they were chosen: "cosine", "itm@16" (candidates), "cosine+csls".

    split_sha256: hash of the split on which they were chosen; empty if nothing was.
    """

    by_scores: Mapping[str, RerankParams] = field(default_factory=dict)
    split_sha256: str = ""

    def of(self, scores: str) -> RerankParams:
        """The parameters chosen on these scores."""
        return self.by_scores.get(scores, RerankParams())

    def adding(self, scores: str, params: RerankParams) -> ChosenParams:
        """A copy in which `params` replace those chosen on the same scores.

        Parameters chosen on the output of a re-ranking that changes here are dropped.
        """
        before = self.of(scores)
        changed = [name for name in RERANKINGS if Step.of(name, before, "") != Step.of(name, params, "")]
        stale = tuple(f"{scores}+{name}" for name in changed)
        kept = {key: its for key, its in self.by_scores.items() if not _is_of(key, stale)}
        return replace(self, by_scores={**kept, scores: params})

    def taking_over(self, before: ChosenParams, after: ChosenParams) -> ChosenParams:
        """A copy with the changes from `before` to `after`, keeping what another process chose meanwhile.

        Parameters chosen on the output of a re-ranking that has other parameters here are dropped.
        """
        both = self
        for scores in sorted(after.by_scores, key=lambda key: key.count("+")):
            old, new = vars(before.of(scores)), vars(after.of(scores))
            chosen: dict[str, Any] = {name: value for name, value in new.items() if value != old[name]}
            if chosen and both._agrees(after, scores):
                both = both.adding(scores, replace(both.of(scores), **chosen))
        return both

    def _agrees(self, other: ChosenParams, scores: str) -> bool:
        """Whether every re-ranking behind these scores has the same parameters in both."""
        base, *names = scores.split("+")
        chain = cast("list[Reranking]", names)
        return all(
            Step.of(name, self.of(before), "") == Step.of(name, other.of(before), "")
            for name, before in zip(chain, reranking_inputs(base, chain), strict=True)
        )

    def lacks(self, base: str, chain: Sequence[Reranking]) -> bool:
        """Whether a chain needs parameters that were never chosen on the scores that it re-ranks."""
        inputs = reranking_inputs(base, chain)
        return not all(self.of(scores).allows(name) for scores, name in zip(inputs, chain, strict=True))

    def steps(self, base: str, chain: Sequence[Reranking], plain: str) -> tuple[Step, ...] | None:
        """The chain with parameters chosen on each step's input, else on `plain` scores; None if neither exists."""
        steps = []
        for scores, name in zip(reranking_inputs(base, chain), chain, strict=True):
            source = scores if self.of(scores).allows(name) else plain
            if not self.of(source).allows(name):
                return None
            steps.append(Step.of(name, self.of(source), source))
        return tuple(steps)

    def holds(self, step: Step) -> bool:
        """Whether a step still has these parameters."""
        return Step.of(step.reranking, self.of(step.chosen_on), step.chosen_on) == step


def _is_of(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}+") for prefix in prefixes)


def reranking_inputs(base: str, chain: Sequence[Reranking]) -> tuple[str, ...]:
    """The input of each re-ranking of a chain: "cosine", then "cosine+csls", ..."""
    return tuple("+".join((base, *chain[:place])) for place in range(len(chain)))


@dataclass(frozen=True, eq=False)
class Directions:
    """Scores of images x texts and of texts x images; the second is None if it is the first's transpose."""

    i2t: ScoreMatrix
    own_t2i: ScoreMatrix | None = None

    @cached_property
    def t2i(self) -> ScoreMatrix:
        return self.i2t.transposed() if self.own_t2i is None else self.own_t2i

    @cached_property
    def rank_stats(self) -> tuple[RankStats, RankStats]:
        """Ranks and ranges of both, computed once for all re-rankings of these scores."""
        forward = RankStats.of(self.i2t)
        return forward, forward.transposed() if self.own_t2i is None else RankStats.of(self.own_t2i)

    def by_symmetric(self, reranking: Callable[[ScoreMatrix], ScoreMatrix]) -> Directions:
        """Both directions by a re-ranking that commutes with transposition."""
        return Directions(reranking(self.i2t), None if self.own_t2i is None else reranking(self.own_t2i))


def rerank(scores: Directions, name: Reranking, tuned: RerankParams) -> Directions:
    """Apply one re-ranking to both directions. Raises UsageError if its parameters were never chosen."""
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
        hint="choose them on a selection split: `cmpagl tune smr` for a run, --choose-on for files",
    )


def parse_rerankings(text: str) -> tuple[Reranking, ...]:
    """Split "csls+smr" into its parts. Raises UsageError listing the re-rankings."""
    parts = tuple(part.strip().replace("-", "_") for part in text.split("+"))
    found = tuple(name for part in parts for name in RERANKINGS if name == part)
    if len(found) != len(parts):
        raise UsageError(f"{text!r} is not a re-ranking", hint=f"choose from {', '.join(RERANKINGS)}, joined by '+'")
    return found
