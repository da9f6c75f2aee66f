"""How much SMR's gammas matter: the whole grid in both forms, beside every other re-ranking (ours; section 4).

The paper chose the gammas from a grid and did not report the other values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmpagl_core.errors import UsageError
from cmpagl_core.evaluation.intervals import METRICS, PerImage, resamples
from cmpagl_core.evaluation.recall import KS, Matches, rank_queries
from cmpagl_core.evaluation.tune import EQUAL_MR, SmrGrid, place_of_best
from cmpagl_core.progress import Progress, Silent
from cmpagl_core.ranking.offsets import TEMPERATURES
from cmpagl_core.ranking.rerank import Directions, Gammas, RerankParams, rerank
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.ranking.smr import SmrForm

FORMS: tuple[SmrForm, ...] = get_args(SmrForm)

_MR = METRICS.index("mr")
_OTHERS = ("galr", "csls")


@dataclass(frozen=True)
class Setting:
    """One re-ranking with its parameters; gain and 95 % interval are points of mR over no re-ranking.

    best_share: share of the resamples, 0 to 1, in which this pair of gammas is its form's best; None except for SMR.
    """

    reranking: str  # "smr multiply", "smr add", "galr", "csls", "dual_softmax", "sinkhorn"
    gamma1: float | None
    gamma2: float | None
    temperature: float | None
    mr: float
    gain: float
    gain_ci95: tuple[float, float]
    best_share: float | None


@dataclass(frozen=True)
class FormSummary:
    """Summary of one form's grid; gains in points; the pair (0, 0) counts for the best only, as it is a baseline."""

    form: SmrForm
    best: Setting
    worst: Setting
    median_gain: float
    better_share: float  # share of the pairs of gammas with a gain above 0


@dataclass(frozen=True)
class Sensitivity:
    """mR in percent under `rsitr` on one split: without re-ranking, and with every setting of each."""

    images: int
    captions: int
    samples: int
    plain_mr: float
    settings: tuple[Setting, ...]

    def grid(self, form: SmrForm) -> tuple[Setting, ...]:
        """Every pair of gammas in one form, by gamma1, then gamma2."""
        return tuple(setting for setting in self.settings if setting.reranking == f"smr {form}")

    @property
    def others(self) -> tuple[Setting, ...]:
        """The re-rankings without gammas."""
        return tuple(setting for setting in self.settings if setting.gamma1 is None)

    def summary(self, form: SmrForm) -> FormSummary:
        grid = self.grid(form)
        moved = [setting for setting in grid if setting.gamma1 or setting.gamma2] or list(grid)
        gains = [setting.gain for setting in moved]
        return FormSummary(
            form,
            best=_best(grid),
            worst=min(moved, key=lambda setting: setting.mr),
            median_gain=float(np.median(gains)),
            better_share=float(np.mean([gain > EQUAL_MR for gain in gains])),
        )

    def to_json(self) -> dict[str, Any]:
        """{"plain_mr", "summaries", "settings": [{"reranking", "gamma1", "gamma2", "mr", "gain", ...}], ...}."""
        return {
            "images": self.images,
            "captions": self.captions,
            "samples": self.samples,
            "plain_mr": self.plain_mr,
            "summaries": [asdict(self.summary(form)) for form in FORMS],
            "settings": [asdict(setting) for setting in self.settings],
        }


def smr_sensitivity(
    scores: ScoreMatrix,
    caption_image: ArrayLike,
    image_ids: Sequence[str],
    gammas: Sequence[float] = SmrGrid().gammas,
    samples: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sensitivity:
    """Evaluate both forms on gammas x gammas, GaLR, CSLS, dual softmax and Sinkhorn on scores of images x texts.

    Intervals are of the paired gain: bootstrap over query images, with the same resamples for every setting. Raises
    UsageError for an empty grid, an invalid gamma, or less than one sample.
    """
    if not gammas:
        raise UsageError("the grid of gammas is empty", hint="give at least one gamma")
    if samples < 1:
        raise UsageError(f"samples = {samples} must be at least 1")
    owners = np.asarray(caption_image, np.int64)
    matches = Matches.own(owners, scores.shape[0])
    both = Directions(scores.in_memory())
    planned = list(_planned(sorted(set(gammas))))
    plain = _per_image(both, matches, image_ids, owners)
    found = []
    with (progress or Silent()).task("re-rank", len(planned)) as advance:
        for name, tuned in planned:
            reranked = rerank(both, "smr" if name.startswith("smr") else name, tuned)  # type: ignore[arg-type]
            found.append(_per_image(reranked, matches, image_ids, owners))
            advance(1)
    drawn = _resampled_mr([plain, *found], samples, seed)  # [samples, 1 + settings]
    plain_mr = float(plain.metrics()[_MR])
    shares = _best_shares([name for name, _ in planned], drawn[:, 1:])
    settings = tuple(
        _setting(name, tuned, float(result.metrics()[_MR]), plain_mr, drawn[:, place] - drawn[:, 0], share)
        for place, ((name, tuned), result, share) in enumerate(zip(planned, found, shares, strict=True), start=1)
    )
    return Sensitivity(scores.shape[0], scores.shape[1], samples, plain_mr, settings)


def _planned(gammas: Sequence[float]) -> Iterator[tuple[str, RerankParams]]:
    for form in FORMS:
        for first in gammas:
            for second in gammas:
                yield f"smr {form}", RerankParams(Gammas(form, first, second))
    for name in _OTHERS:
        yield name, RerankParams()
    for temperature in TEMPERATURES:
        yield "dual_softmax", RerankParams(dual_softmax=temperature)
    for temperature in TEMPERATURES:
        yield "sinkhorn", RerankParams(sinkhorn=temperature)


def _per_image(scores: Directions, matches: Matches, image_ids: Sequence[str], owners: NDArray[np.int64]) -> PerImage:
    hits = []
    for side, its in ((scores.i2t, matches), (scores.t2i, matches.transposed())):
        ranking = rank_queries(side, its)
        rows = np.full((its.queries, len(KS)), np.nan)
        rows[ranking.query] = np.stack([ranking.hits(k) for k in KS], axis=1)
        hits.append(rows)
    return PerImage.of(image_ids, hits[0], hits[1], owners)


def _resampled_mr(results: Sequence[PerImage], samples: int, seed: int) -> NDArray[np.float64]:
    """mR of every result on the same resamples of images: [samples, results]."""
    pieces = resamples(len(results[0].image_ids), samples, seed)
    return np.concatenate([np.stack([result.metrics(drawn)[:, _MR] for result in results], axis=1) for drawn in pieces])


def _best_shares(names: Sequence[str], drawn: NDArray[np.float64]) -> list[float | None]:
    """How often each setting is the best of its name, ties shared; None except for SMR."""
    shares: list[float | None] = [None] * len(names)
    for form in FORMS:
        columns = [place for place, name in enumerate(names) if name == f"smr {form}"]
        of_form = drawn[:, columns]
        best = of_form >= of_form.max(axis=1, keepdims=True) - EQUAL_MR
        won = (best / best.sum(axis=1, keepdims=True)).mean(axis=0)
        for place, share in zip(columns, won, strict=True):
            shares[place] = float(share)
    return shares


def _best(grid: Sequence[Setting]) -> Setting:
    """As in tuning: the smallest gammas among ties."""
    place = place_of_best([setting.mr for setting in grid], [(one.gamma1 or 0.0, one.gamma2 or 0.0) for one in grid])
    return grid[place]


def _setting(
    name: str, tuned: RerankParams, mr: float, plain_mr: float, gains: NDArray[np.float64], share: float | None
) -> Setting:
    low, high = np.quantile(gains, [0.025, 0.975])
    return Setting(
        name,
        None if tuned.smr is None else tuned.smr.gamma1,
        None if tuned.smr is None else tuned.smr.gamma2,
        tuned.dual_softmax if tuned.sinkhorn is None else tuned.sinkhorn,
        mr,
        mr - plain_mr,
        (float(low), float(high)),
        share,
    )
