"""The stages of an evaluation, and the row of each (section 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from cmpagl_core.errors import UsageError
from cmpagl_core.evaluation.intervals import METRICS, PerImage, bootstrap
from cmpagl_core.evaluation.metrics import first_rank, rank_metrics
from cmpagl_core.evaluation.recall import KS, Matches, Probabilities, Ranking, rank_queries, summarise
from cmpagl_core.evaluation.result import Queries, ReportRow, Spans, StageHits
from cmpagl_core.ranking.rerank import ChosenParams, Directions, Reranking, Step, parse_rerankings, rerank
from cmpagl_core.ranking.scores import ScoreMatrix

Base = Literal["cosine", "balanced", "itm"]
BASES: tuple[Base, ...] = get_args(Base)
"""balanced: cosines less the potentials of a balanced run (ours; models/balance.py)."""


@dataclass(frozen=True)
class Stage:
    """A named row: its base scores and the re-rankings applied to them."""

    name: str
    base: Base
    rerankings: tuple[Reranking, ...] = ()


@dataclass(frozen=True)
class Available:
    """What can be evaluated: base scores, the plain ranking first, and the parameters of re-rankings.

    itm_k: candidates of the ITM scores, on which parameters depend; 0: every pair, None: no ITM. smr: whether SMR is
    shown by default.
    """

    bases: tuple[Base, ...]
    params: ChosenParams
    itm_k: int | None = None
    smr: bool = True

    def scores_of(self, base: Base) -> str:
        """The name of these scores as a key of parameters."""
        return f"itm@{self.itm_k}" if base == "itm" else base

    def lacking(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Stages whose parameters were never chosen on the scores that they re-rank."""
        return tuple(stage for stage in stages if self.params.lacks(self.scores_of(stage.base), stage.rerankings))

    def steps(self, stage: Stage) -> tuple[Step, ...] | None:
        """The stage's re-rankings with parameters; None if some were never chosen, not even on plain scores."""
        return self.params.steps(self.scores_of(stage.base), stage.rerankings, self.scores_of(self.bases[0]))


def wanted_stages(wanted: str, bases: tuple[Base, ...]) -> tuple[Stage, ...]:
    """The requested stages.

    wanted: "none" (the base scores), "default" (with SMR on each), "all" (with every other re-ranking of the first),
    or a list such as "smr,csls+smr,itm+galr". Raises UsageError for an unknown re-ranking or base.
    """
    plain = [Stage(base, base) for base in bases]
    if wanted not in ("none", "default", "all"):
        asked = [_named(text.strip(), bases) for text in wanted.split(",")]
        return plain[0], *(stage for stage in dict.fromkeys(asked) if stage != plain[0])
    if wanted == "none":
        return tuple(plain)
    stages = [stage for base in plain for stage in (base, Stage(f"{base.name}+smr", base.base, ("smr",)))]
    if wanted == "all":
        others: tuple[Reranking, ...] = ("galr", "csls", "dual_softmax", "sinkhorn")
        stages += [Stage(name, bases[0], (name,)) for name in others]
    return tuple(stages)


def plan_stages(wanted: str, available: Available) -> tuple[tuple[Stage, ...], tuple[str, ...]]:
    """The stages to show, and a note for each that is left out or borrows its parameters.

    wanted: as for `wanted_stages`. Raises UsageError for a stage that is requested by name but not available.
    """
    stages = wanted_stages("none" if wanted == "default" and not available.smr else wanted, available.bases)
    steps = {stage: available.steps(stage) for stage in stages}
    missing = [stage.name for stage in stages if steps[stage] is None]
    if missing and wanted not in ("default", "all"):
        raise UsageError(f"{missing[0]!r}: its parameters were never chosen", hint="see `cmpagl tune smr`")
    notes = [f"left out {', '.join(missing)}: parameters were never chosen on a selection split"] if missing else []
    notes += [_borrowing(stage, available) for stage in available.lacking(stages) if steps[stage] is not None]
    return tuple(stage for stage in stages if steps[stage] is not None), tuple(notes)


def _borrowing(stage: Stage, available: Available) -> str:
    plain = available.bases[0]
    way_out = f"`cmpagl evaluate --rerank {stage.name}` chooses them on the right scores"
    return f"{stage.name}: its parameters were chosen on {plain} scores, not on those that it re-ranks; {way_out}"


def score_stages(
    stages: tuple[Stage, ...],
    scores: Callable[[Base], ScoreMatrix],
    available: Available,
    matches: Matches,
    queries: Queries,
    samples: int,
    seed: int,
) -> tuple[tuple[ReportRow, ...], Queries]:
    """Evaluate every stage on scores of images x texts; `scores` is called once for each base."""
    bases: dict[Base, Directions] = {}
    rows, hits = [], {}
    for stage in stages:
        if stage.base not in bases:
            bases[stage.base] = Directions(scores(stage.base).in_memory())
        both = bases[stage.base]
        for step in available.steps(stage) or ():
            both = rerank(both, step.reranking, step.params)
        row, found = _evaluate(stage.name, both, matches, queries, samples, seed)
        rows.append(row)
        hits[stage.name] = found
    return tuple(rows), Queries(queries.image_ids, queries.caption_image, hits)


def _named(text: str, bases: tuple[Base, ...]) -> Stage:
    """Parse a stage's name; a leading `cosine+` is optional. Raises UsageError."""
    first, _, rest = text.partition("+")
    named: dict[str, Base] = {base: base for base in BASES}
    if first in named:
        base, rerankings = named[first], parse_rerankings(rest) if rest else ()
    else:
        base, rerankings = bases[0], parse_rerankings(text)
    if base not in bases:
        raise UsageError(f"{text!r}: there are no {base} scores here", hint=f"there is {', '.join(bases)}")
    short = not rerankings or rerankings == ("smr",) or base != bases[0]
    return Stage("+".join((base, *rerankings)) if short else "+".join(rerankings), base, rerankings)


def _evaluate(
    name: str, scores: Directions, matches: Matches, queries: Queries, samples: int, seed: int
) -> tuple[ReportRow, StageHits]:
    backward = matches.transposed()
    i2t, t2i = rank_queries(scores.i2t, matches), rank_queries(scores.t2i, backward)
    result = summarise(i2t, t2i)
    hits = StageHits(
        _spread(i2t, matches.queries, _hits(i2t)),
        _spread(t2i, backward.queries, _hits(t2i)),
        _spread(i2t, matches.queries, first_rank(i2t)),
        _spread(t2i, backward.queries, first_rank(t2i)),
    )
    per_image = PerImage.of(queries.image_ids, hits.i2t_hits, hits.t2i_hits, queries.caption_image)
    low = [ranking.pessimistic(k).mean() * 100 for ranking in (i2t, t2i) for k in KS]
    high = [ranking.optimistic(k).mean() * 100 for ranking in (i2t, t2i) for k in KS]
    row = ReportRow(
        stage=name,
        i2t=result.i2t,
        t2i=result.t2i,
        mr=result.mr,
        bounds=_spans(np.array([[*low, result.mr_pessimistic], [*high, result.mr_optimistic]]).T),
        ci95=_spans(bootstrap(per_image, samples, seed)),
        i2t_ranks=rank_metrics(scores.i2t, matches, i2t),
        t2i_ranks=rank_metrics(scores.t2i, backward, t2i),
        queries={"i2t": len(i2t.query), "t2i": len(t2i.query)},
    )
    return row, hits


def _hits(ranking: Ranking) -> Probabilities:
    return np.stack([ranking.hits(k) for k in KS], axis=1)


def _spread(ranking: Ranking, queries: int, values: Probabilities) -> Probabilities:
    """Values of the queries with a match, spread to rows for all queries."""
    rows = np.full((queries, *values.shape[1:]), np.nan)
    rows[ranking.query] = values
    return rows


def _spans(values: Probabilities) -> Spans:
    """values: [7, 2] in the order of METRICS."""
    named: Mapping[str, tuple[float, float]] = {
        name: (float(low), float(high)) for name, (low, high) in zip(METRICS, values, strict=True)
    }
    sides = {side: {key: named[f"{side}.{key}"] for key in ("r1", "r5", "r10")} for side in ("i2t", "t2i")}
    return Spans(sides["i2t"], sides["t2i"], named["mr"])
