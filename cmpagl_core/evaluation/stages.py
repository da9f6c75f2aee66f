"""Which stages an evaluation shows, and the row of each (method, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cmpagl_core.errors import UsageError
from cmpagl_core.evaluation.intervals import METRICS, PerImage, bootstrap
from cmpagl_core.evaluation.metrics import first_rank, rank_metrics
from cmpagl_core.evaluation.recall import KS, Matches, Probabilities, Ranking, rank_queries, summarise
from cmpagl_core.evaluation.result import Queries, ReportRow, Spans, StageHits
from cmpagl_core.ranking.chain import Directions, Reranking, Tuned, parse_chain, rerank
from cmpagl_core.ranking.scores import ScoreMatrix

Base = Literal["cosine", "itm"]


@dataclass(frozen=True)
class Stage:
    """A named row: the scores it starts from, and the re-rankings on top."""

    name: str
    base: Base
    chain: tuple[Reranking, ...] = ()


@dataclass(frozen=True)
class Available:
    """What a model offers: base scores, the plain ranking first, and re-rankings whose parameters are known."""

    bases: tuple[Base, ...]
    tuned: Tuned


def plan_stages(wanted: str, available: Available) -> tuple[tuple[Stage, ...], tuple[str, ...]]:
    """The rows to show, and a sentence for each that cannot be.

    wanted: "none" (the base scores), "default" (and SMR on each), "all" (and every other re-ranking of the first),
    or a list such as "smr,csls+smr,itm+galr". Raises UsageError for what is no re-ranking, or asked for by name and
    not to be had.
    """
    plain = [Stage(base, base) for base in available.bases]
    if wanted not in ("none", "default", "all"):
        asked = [_named(text.strip(), available) for text in wanted.split(",")]
        return (plain[0], *(stage for stage in dict.fromkeys(asked) if stage != plain[0])), ()
    if wanted == "none":
        return tuple(plain), ()
    stages = [stage for base in plain for stage in (base, Stage(f"{base.name}+smr", base.base, ("smr",)))]
    if wanted == "all":
        others: tuple[Reranking, ...] = ("galr", "csls", "dual_softmax", "sinkhorn")
        stages += [Stage(name, available.bases[0], (name,)) for name in others]
    possible = tuple(stage for stage in stages if all(available.tuned.allows(name) for name in stage.chain))
    missing = [stage.name for stage in stages if stage not in possible]
    notes = (f"left out {', '.join(missing)}: parameters were never chosen on a selection split",) if missing else ()
    return possible, notes


def score_stages(
    stages: tuple[Stage, ...],
    scores: Callable[[Base], ScoreMatrix],
    tuned: Tuned,
    matches: Matches,
    queries: Queries,
    samples: int,
    seed: int,
) -> tuple[tuple[ReportRow, ...], Queries]:
    """Evaluate every stage on scores of images x texts; `scores` is asked once for each base."""
    bases: dict[Base, Directions] = {}
    rows, hits = [], {}
    for stage in stages:
        if stage.base not in bases:
            bases[stage.base] = Directions(scores(stage.base).held())
        both = bases[stage.base]
        for name in stage.chain:
            both = rerank(both, name, tuned)
        row, found = _evaluate(stage.name, both, matches, queries, samples, seed)
        rows.append(row)
        hits[stage.name] = found
    return tuple(rows), Queries(queries.image_ids, queries.caption_image, hits)


def _named(text: str, available: Available) -> Stage:
    """A stage from what the user wrote; `cosine+` in front may be left out. Raises UsageError."""
    first, _, rest = text.partition("+")
    if first in ("cosine", "itm"):
        base: Base = "itm" if first == "itm" else "cosine"
        chain = parse_chain(rest) if rest else ()
    else:
        base, chain = available.bases[0], parse_chain(text)
    if base not in available.bases:
        raise UsageError(f"{text!r}: there are no {base} scores here", hint=f"there is {', '.join(available.bases)}")
    for name in chain:
        if not available.tuned.allows(name):
            raise UsageError(f"{text!r}: the parameters of {name} were never chosen", hint="see `cmpagl tune smr`")
    short = not chain or chain == ("smr",) or base != available.bases[0]
    return Stage("+".join((base, *chain)) if short else "+".join(chain), base, chain)


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
    """Values of the queries that have a match, put into rows for all of them."""
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
