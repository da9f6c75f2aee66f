"""Choosing SMR's gammas and the temperatures of re-rankings, on the selection split alone (method, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from cmpagl_core.errors import UsageError
from cmpagl_core.evaluation.recall import Matches, recall
from cmpagl_core.progress import Progress, Silent
from cmpagl_core.ranking.chain import TEMPERED, Gammas, Tempered, Tuned
from cmpagl_core.ranking.offsets import TEMPERATURES
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.ranking.smr import SmrForm, smr
from cmpagl_core.ranking.standing import Standing

GAMMAS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)

EQUAL_MR = 1e-9  # percent; recalls are sums in float64


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


def choose_smr(
    scores: ScoreMatrix,
    caption_image: ArrayLike,
    gammas: Sequence[float] = GAMMAS,
    form: SmrForm = "multiply",
    progress: Progress | None = None,
) -> SmrChoice:
    """Try gammas x gammas by mR under `rsitr` on these scores (images x texts) of the selection split.

    The smallest gammas win among equals. Raises UsageError for an empty grid or a gamma that is none.
    """
    if not gammas:
        raise UsageError("the grid of gammas is empty", hint="give at least one gamma")
    matches = Matches.own(caption_image, scores.shape[0])
    standing = Standing.of(scores)
    other = standing.transposed()
    chosen = sorted(set(gammas))
    grid = []
    with (progress or Silent()).task("choose gammas", len(chosen) ** 2) as advance:
        for first in chosen:
            for second in chosen:
                i2t = smr(standing.scores, first, second, form, standing)
                t2i = smr(other.scores, first, second, form, other)
                grid.append(GridPoint(first, second, recall(i2t, matches, t2i).mr))
                advance(1)
    best = grid[place_of_best([point.mr for point in grid], [(point.gamma1, point.gamma2) for point in grid])]
    plain = recall(standing.scores, matches).mr
    return SmrChoice(form, best.gamma1, best.gamma2, best.mr, plain, tuple(grid))


def choose_temperature(
    name: Tempered, scores: ScoreMatrix, caption_image: ArrayLike, temperatures: Sequence[float] = TEMPERATURES
) -> float:
    """The temperature with the best mR under `rsitr`, the lowest among equals. Raises UsageError for an empty grid."""
    if not temperatures:
        raise UsageError("the grid of temperatures is empty", hint="give at least one temperature")
    matches, held = Matches.own(caption_image, scores.shape[0]), scores.held()
    found = [(recall(TEMPERED[name](held, temperature), matches).mr, temperature) for temperature in set(temperatures)]
    top = max(mr for mr, _ in found)
    return min(temperature for mr, temperature in found if mr >= top - EQUAL_MR)


def choose_all(
    scores: ScoreMatrix,
    caption_image: ArrayLike,
    gammas: Sequence[float] = GAMMAS,
    form: SmrForm = "multiply",
    progress: Progress | None = None,
) -> Tuned:
    """Every parameter that re-rankings have, chosen on the scores of one selection split."""
    choice = choose_smr(scores, caption_image, gammas, form, progress)
    return choose_temperatures(scores, caption_image, choice.gammas)


def choose_temperatures(scores: ScoreMatrix, caption_image: ArrayLike, gammas: Gammas | None) -> Tuned:
    """These gammas of SMR, and the temperature of every re-ranking that has one."""
    chosen = {name: choose_temperature(name, scores, caption_image) for name in TEMPERED}
    return Tuned(gammas, chosen["dual_softmax"], chosen["sinkhorn"])


def place_of_best(mr: Sequence[float], pairs: Sequence[tuple[float, float]]) -> int:
    """Row of the best mR, of the smallest gammas among equals. pairs: gamma1 and gamma2 of each row."""
    top = max(mr)
    equals = [place for place, value in enumerate(mr) if value >= top - EQUAL_MR]
    return min(equals, key=lambda place: (sum(pairs[place]), pairs[place][0]))
