"""Chooses SMR's gammas and the re-rankings' temperatures on the selection split (section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from numpy.typing import ArrayLike

from cmpagl_core.errors import UsageError
from cmpagl_core.evaluation.recall import Matches, recall
from cmpagl_core.evaluation.stages import Available, Base, Stage
from cmpagl_core.progress import Progress, Silent
from cmpagl_core.ranking.offsets import TEMPERATURES
from cmpagl_core.ranking.rerank import (
    ChosenParams,
    Directions,
    Gammas,
    Reranking,
    RerankParams,
    Step,
    Tempered,
    rerank,
    reranking_inputs,
)
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.ranking.smr import SmrForm, smr
from cmpagl_core.recipe import EvaluatePart

EQUAL_MR = 1e-9  # percent; recalls are sums in float64


@dataclass(frozen=True)
class SmrGrid:
    """A grid for SMR: one form, and every pair of the given gammas."""

    form: SmrForm = "multiply"
    gammas: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)

    @classmethod
    def of(cls, cfg: EvaluatePart) -> SmrGrid:
        """The grid of a recipe."""
        return cls(cfg.smr_form, cfg.smr_gammas)


@dataclass(frozen=True)
class GridPoint:
    """mR in percent with one pair of gammas."""

    gamma1: float
    gamma2: float
    mr: float


@dataclass(frozen=True)
class SmrChoice:
    """The best point of the grid, and the whole grid, all in percent."""

    form: SmrForm
    gamma1: float
    gamma2: float
    mr: float
    plain_mr: float  # without SMR
    grid: tuple[GridPoint, ...]

    @property
    def gammas(self) -> Gammas:
        return Gammas(self.form, self.gamma1, self.gamma2)

    def added_to(self, known: RerankParams) -> RerankParams:
        """`known` with these SMR parameters."""
        return replace(known, smr=self.gammas, smr_mr=self.mr)


def choose_smr(
    scores: ScoreMatrix | Directions,
    caption_image: ArrayLike,
    grid: SmrGrid = SmrGrid(),
    progress: Progress | None = None,
) -> SmrChoice:
    """Search a grid of gammas for the best mR under `rsitr` on these scores (images x texts) of the selection split.

    scores: plain ones, or those of both directions after other re-rankings. The smallest gammas win ties. Raises
    UsageError for an empty grid or an invalid gamma.
    """
    if not grid.gammas:
        raise UsageError("the grid of gammas is empty", hint="give at least one gamma")
    both = _both(scores)
    matches = Matches.own(caption_image, both.i2t.shape[0])
    rank_stats, other = both.rank_stats
    gammas = sorted(set(grid.gammas))
    points = []
    with (progress or Silent()).task("choose gammas", len(gammas) ** 2) as advance:
        for first in gammas:
            for second in gammas:
                i2t = smr(rank_stats.scores, first, second, grid.form, rank_stats)
                t2i = smr(other.scores, first, second, grid.form, other)
                points.append(GridPoint(first, second, recall(i2t, matches, t2i).mr))
                advance(1)
    best = points[place_of_best([point.mr for point in points], [(point.gamma1, point.gamma2) for point in points])]
    plain = recall(both.i2t, matches, both.own_t2i).mr
    return SmrChoice(grid.form, best.gamma1, best.gamma2, best.mr, plain, tuple(points))


def choose_temperature(
    name: Tempered,
    scores: ScoreMatrix | Directions,
    caption_image: ArrayLike,
    temperatures: Sequence[float] = TEMPERATURES,
) -> float:
    """The temperature with the best mR under `rsitr`; the lowest wins ties. Raises UsageError for an empty grid."""
    if not temperatures:
        raise UsageError("the grid of temperatures is empty", hint="give at least one temperature")
    both = _both(scores)
    matches = Matches.own(caption_image, both.i2t.shape[0])
    found = []
    for temperature in set(temperatures):
        reranked = rerank(both, name, Step(name, temperature=temperature).params)
        found.append((recall(reranked.i2t, matches, reranked.own_t2i).mr, temperature))
    top = max(mr for mr, _ in found)
    return min(temperature for mr, temperature in found if mr >= top - EQUAL_MR)


def choose_params(
    stages: Sequence[Stage],
    scores: Callable[[Base], ScoreMatrix],
    caption_image: ArrayLike,
    available: Available,
    grid: SmrGrid = SmrGrid(),
    progress: Progress | None = None,
) -> ChosenParams:
    """The known parameters and those these stages still need, each chosen on the selection scores that it re-ranks.

    scores: images x texts of the selection split; called only for a base on which something is chosen.
    """
    params = available.params
    for stage in stages:
        source = available.scores_of(stage.base)
        if not params.lacks(source, stage.rerankings):
            continue
        both, inputs = Directions(scores(stage.base).in_memory()), reranking_inputs(source, stage.rerankings)
        for place, (scored, name) in enumerate(zip(inputs, stage.rerankings, strict=True)):
            if place:
                both = rerank(both, stage.rerankings[place - 1], params.of(inputs[place - 1]))
            known = params.of(scored)
            if not known.allows(name):
                chosen = _choose(name, known, both, caption_image, grid, progress)
                params = params.adding(scored, chosen)
    return params


def _choose(
    name: Reranking,
    known: RerankParams,
    scores: Directions,
    caption_image: ArrayLike,
    grid: SmrGrid,
    progress: Progress | None,
) -> RerankParams:
    if name == "smr":
        return choose_smr(scores, caption_image, grid, progress).added_to(known)
    if name == "dual_softmax":
        return replace(known, dual_softmax=choose_temperature(name, scores, caption_image))
    if name == "sinkhorn":
        return replace(known, sinkhorn=choose_temperature(name, scores, caption_image))
    return known


def place_of_best(mr: Sequence[float], pairs: Sequence[tuple[float, float]]) -> int:
    """Row of the best mR; the smallest gammas win ties. pairs: gamma1 and gamma2 of each row."""
    top = max(mr)
    equals = [place for place, value in enumerate(mr) if value >= top - EQUAL_MR]
    return min(equals, key=lambda place: (sum(pairs[place]), pairs[place][0]))


def _both(scores: ScoreMatrix | Directions) -> Directions:
    return scores if isinstance(scores, Directions) else Directions(scores.in_memory())
