"""Choosing SMR's gammas and the temperature of dual softmax, on the selection split alone (method, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from cmpagl_core.errors import UsageError
from cmpagl_core.evaluation.recall import Matches, recall
from cmpagl_core.retrieval.rerank.smr import SmrForm, smr
from cmpagl_core.retrieval.rerank.standing import Standing
from cmpagl_core.retrieval.scores import ScoreMatrix

GAMMAS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)

_EQUAL_MR = 1e-9  # percent; recalls are sums in float64


@dataclass(frozen=True)
class GridPoint:
    """mR in percent with one pair of gammas."""

    gamma1: float
    gamma2: float
    mr: float


@dataclass(frozen=True)
class SmrChoice:
    """The best point of the grid, and the whole grid."""

    form: SmrForm
    gamma1: float
    gamma2: float
    mr: float
    grid: tuple[GridPoint, ...]


def choose_smr(
    scores: ScoreMatrix,
    caption_image: ArrayLike,
    gammas: Sequence[float] = GAMMAS,
    form: SmrForm = "multiply",
) -> SmrChoice:
    """Try gammas x gammas by mR under `rsitr` on these scores (images x texts) of the selection split.

    The smallest gammas win among equals. Raises UsageError for an empty grid.
    """
    if not gammas:
        raise UsageError("the grid of gammas is empty", hint="give at least one gamma")
    matches = Matches.own(caption_image, scores.shape[0])
    standing = Standing.of(scores)
    other = standing.transposed()
    pairs = [(first, second) for first in sorted(set(gammas)) for second in sorted(set(gammas))]
    grid = tuple(
        GridPoint(
            first,
            second,
            recall(
                smr(standing.scores, first, second, form, standing),
                matches,
                smr(other.scores, first, second, form, other),
            ).mr,
        )
        for first, second in pairs
    )
    best = _best(grid)
    return SmrChoice(form, best.gamma1, best.gamma2, best.mr, grid)


def _best(grid: Sequence[GridPoint]) -> GridPoint:
    top = max(point.mr for point in grid)
    equals = [point for point in grid if point.mr >= top - _EQUAL_MR]
    return min(equals, key=lambda point: (point.gamma1 + point.gamma2, point.gamma1))
