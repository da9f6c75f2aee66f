"""AblationTable: each variant's recalls, and its difference from the baseline with interval and p."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cmpagl_core.ablation.trials import TrialResult
from cmpagl_core.ablation.variants import Variant
from cmpagl_core.evaluation.intervals import Comparison, PerImage, compare, holm
from cmpagl_core.evaluation.protocol import require_one_column
from cmpagl_core.evaluation.recall import Recalls
from cmpagl_core.evaluation.stages import Base

TABLE_FORMAT = 1
_MR = "mr"


@dataclass(frozen=True)
class AblationRow:
    """One variant; recalls in percent, means over seeds.

    delta and its 95 % interval are variant minus baseline; p from a paired randomisation test over query images,
    results averaged over seeds; p_holm corrected over the variants of the table. All None for the baseline.
    """

    variant: str
    claim: str
    stage: str
    seeds: tuple[int, ...]
    i2t: Recalls
    t2i: Recalls
    mr: float
    mr_std: float | None  # over seeds; None with one
    delta: float | None
    delta_ci95: tuple[float, float] | None
    p_value: float | None
    p_holm: float | None
    parameters: int
    seconds_per_epoch: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AblationTable:
    """The result of a study, the baseline first."""

    dataset: str
    split: str
    images: int
    captions: int
    rows: tuple[AblationRow, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """{"rows": [{"variant", "seeds", "mr", "mr_std", "delta", "p_value", ...}], ...}."""
        return {"format_version": TABLE_FORMAT, **asdict(self)}


def build_table(
    variants: Sequence[Variant],
    results: Mapping[str, Sequence[TrialResult]],
    base: Base | None = None,
    notes: Sequence[str] = (),
) -> AblationTable:
    """results: of each variant by name, one per seed, the baseline's first. base: compare by these plain scores.

    Raises GuardError if results are of different data, DataError for a stage that was not evaluated.
    """
    first = results[variants[0].name]
    stamps = {f"{name}, seed {one.facts.seed}": one.report.stamp for name, found in results.items() for one in found}
    require_one_column(stamps)
    reference = _per_image(variants[0], first, base)
    comparisons = {
        variant.name: _of_mr(compare(reference, _per_image(variant, results[variant.name], base)))
        for variant in variants[1:]
    }
    corrected = holm(np.array([found.p for found in comparisons.values()])) if comparisons else ()
    p_holm = dict(zip(comparisons, map(float, corrected), strict=True))
    rows = tuple(
        _row(variant, results[variant.name], base, comparisons.get(variant.name), p_holm.get(variant.name))
        for variant in variants
    )
    stamp = first[0].report.stamp
    return AblationTable(stamp.dataset, stamp.split, stamp.images, stamp.captions, rows, tuple(notes))


def _per_image(variant: Variant, results: Sequence[TrialResult], base: Base | None) -> list[PerImage]:
    return [result.report.queries.per_image(result.stage(variant.stage(base))) for result in results]


def _of_mr(comparisons: Sequence[Comparison]) -> Comparison:
    return next(found for found in comparisons if found.metric == _MR)


def _row(
    variant: Variant,
    results: Sequence[TrialResult],
    base: Base | None,
    comparison: Comparison | None,
    p_holm: float | None,
) -> AblationRow:
    stage = results[0].stage(variant.stage(base))
    rows = [result.report.row(result.stage(stage)) for result in results]
    mr = [row.mr for row in rows]
    return AblationRow(
        variant=variant.name,
        claim="; ".join(dict.fromkeys(switch.claim for switch in variant.switches)),
        stage=stage,
        seeds=tuple(result.facts.seed for result in results),
        i2t=_mean([row.i2t for row in rows]),
        t2i=_mean([row.t2i for row in rows]),
        mr=float(np.mean(mr)),
        mr_std=float(np.std(mr, ddof=1)) if len(mr) > 1 else None,
        delta=None if comparison is None else comparison.delta,
        delta_ci95=None if comparison is None else comparison.ci95,
        p_value=None if comparison is None else comparison.p,
        p_holm=p_holm,
        parameters=results[0].facts.parameters,
        seconds_per_epoch=float(np.mean([result.facts.seconds_per_epoch for result in results])),
        notes=variant.notes,
    )


def _mean(found: Sequence[Recalls]) -> Recalls:
    return Recalls(*(float(np.mean([getattr(one, name) for one in found])) for name in ("r1", "r5", "r10")))
