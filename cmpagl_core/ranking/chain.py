"""Both directions of a score matrix, and re-rankings by name, alone or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from cmpagl_core.errors import UsageError
from cmpagl_core.ranking.galr import galr
from cmpagl_core.ranking.offsets import csls, dual_softmax, sinkhorn
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.ranking.smr import SmrForm, smr
from cmpagl_core.ranking.standing import Standing

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
class Tuned:
    """What was chosen on the selection split; None where nothing was."""

    smr: Gammas | None = None
    dual_softmax: float | None = None  # its temperature
    sinkhorn: float | None = None  # its temperature

    def temperature(self, name: Tempered) -> float | None:
        """That of a re-ranking that has one."""
        return self.dual_softmax if name == "dual_softmax" else self.sinkhorn

    @property
    def has_temperatures(self) -> bool:
        """Whether every re-ranking that has a temperature has one."""
        return all(self.temperature(name) is not None for name in TEMPERED)

    def allows(self, name: Reranking) -> bool:
        """Whether a re-ranking has all its parameters."""
        if name in ("dual_softmax", "sinkhorn"):
            return self.temperature(name) is not None
        return name != "smr" or self.smr is not None


@dataclass(frozen=True, eq=False)
class Directions:
    """Scores of images x texts and of texts x images; the second is None where it is the first's transpose."""

    i2t: ScoreMatrix
    own_t2i: ScoreMatrix | None = None

    @cached_property
    def t2i(self) -> ScoreMatrix:
        return self.i2t.transposed() if self.own_t2i is None else self.own_t2i

    @cached_property
    def standings(self) -> tuple[Standing, Standing]:
        """Ranks and ranges of both, worked out once for all re-rankings that stand on these scores."""
        forward = Standing.of(self.i2t)
        return forward, forward.transposed() if self.own_t2i is None else Standing.of(self.own_t2i)

    def by_symmetric(self, reranking: Callable[[ScoreMatrix], ScoreMatrix]) -> Directions:
        """Both directions by a re-ranking that does to transposed scores the transpose of what it does to scores."""
        return Directions(reranking(self.i2t), None if self.own_t2i is None else reranking(self.own_t2i))


def rerank(scores: Directions, name: Reranking, tuned: Tuned) -> Directions:
    """One re-ranking of both directions. Raises UsageError for one whose parameters were never chosen."""
    if name == "csls":
        return scores.by_symmetric(csls)
    if name == "galr":
        return Directions(*(galr(side.scores, standing=side) for side in scores.standings))
    if name in ("dual_softmax", "sinkhorn") and (temperature := tuned.temperature(name)) is not None:
        return scores.by_symmetric(lambda side: TEMPERED[name](side, temperature))
    if name == "smr" and tuned.smr is not None:
        chosen = tuned.smr
        return Directions(
            *(smr(side.scores, chosen.gamma1, chosen.gamma2, chosen.form, side) for side in scores.standings)
        )
    raise UsageError(
        f"the parameters of {name} were never chosen for these scores",
        hint="choose them on a selection split: a run keeps its own, for files give --choose-on",
    )


def parse_chain(text: str) -> tuple[Reranking, ...]:
    """Split "csls+smr" into its parts. Raises UsageError naming what there is."""
    parts = tuple(part.strip().replace("-", "_") for part in text.split("+"))
    found = tuple(name for part in parts for name in RERANKINGS if name == part)
    if len(found) != len(parts):
        raise UsageError(f"{text!r} is no re-ranking", hint=f"there is {', '.join(RERANKINGS)}, joined by '+'")
    return found
