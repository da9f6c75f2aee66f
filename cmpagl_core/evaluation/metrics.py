"""MRR, median rank, nDCG@10 and mAP, as expectations over the order of ties (McSherry and Najork 2008)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.evaluation.recall import Counts, Matches, Probabilities, Ranking
from cmpagl_core.ranking.scores import ScoreMatrix

NDCG_AT = 10


@dataclass(frozen=True)
class RankMetrics:
    """Metrics of one direction, in percent, except the median rank of the first match, which counts from 1."""

    mrr: float
    median_rank: float
    ndcg10: float
    map: float


@dataclass(frozen=True, eq=False)
class _TieGroups:
    """Groups of a query's tied matches: G groups, a query's best first."""

    query: Counts  # [G], 0 .. Q - 1
    better: Counts  # [G] items that score strictly higher
    tied: Counts  # [G] items that score the same
    matches: Counts  # [G] matches among these
    before: Counts  # [G] matches among the better ones
    queries: int


def rank_metrics(scores: ScoreMatrix, matches: Matches, ranking: Ranking) -> RankMetrics:
    """All four of one direction; `ranking` is that of the same scores and matches."""
    groups = _tie_groups(scores, matches)
    return RankMetrics(
        mrr=float(100.0 * reciprocal_rank(ranking).mean()),
        median_rank=float(np.median(first_rank(ranking))),
        ndcg10=float(100.0 * _ndcg(groups).mean()),
        map=float(100.0 * _average_precision(groups, scores.shape[1]).mean()),
    )


def first_rank(ranking: Ranking) -> Probabilities:
    """Expected rank [Q] of the first match, from 1: of o matches among t tied items the first is at (t+1)/(o+1)."""
    return ranking.better + (ranking.tied + 1) / (ranking.tied_matches + 1)


def reciprocal_rank(ranking: Ranking) -> Probabilities:
    """Expected 1 / rank [Q] of the first match."""
    expected = np.zeros(len(ranking.query))
    unseen = np.ones(len(ranking.query))  # probability that no match has come yet
    for place in range(int(ranking.tied.max(initial=0))):
        left = np.maximum(ranking.tied - place, 1)
        chance = np.minimum(ranking.tied_matches / left, 1.0)
        expected += unseen * chance / (ranking.better + place + 1)
        unseen *= 1.0 - chance
        if not unseen.any():
            break
    return expected


def _ndcg(groups: _TieGroups) -> Probabilities:
    gains = np.concatenate(([0.0], np.cumsum(1 / np.log2(np.arange(2, NDCG_AT + 2)))))
    last = np.minimum(groups.better + groups.tied, NDCG_AT)
    first = np.minimum(groups.better, NDCG_AT)
    found = _per_query(groups, groups.matches / groups.tied * (gains[last] - gains[first]))
    return found / gains[np.minimum(_per_query(groups, groups.matches), NDCG_AT).astype(np.int64)]


def _average_precision(groups: _TieGroups, gallery: int) -> Probabilities:
    """Expected AP [Q]: a match at place m of its tie group has (m-1)(o-1)/(t-1) matches of the group before it."""
    harmonic = np.concatenate(([0.0], np.cumsum(1 / np.arange(1, gallery + 1))))
    inverse = harmonic[groups.better + groups.tied] - harmonic[groups.better]  # sum of 1 / place
    others = (groups.matches - 1) / np.maximum(groups.tied - 1, 1)
    within = others * (groups.tied - (groups.better + 1) * inverse)
    precision = groups.matches / groups.tied * ((groups.before + 1) * inverse + within)
    return _per_query(groups, precision) / _per_query(groups, groups.matches)


def _per_query(groups: _TieGroups, values: NDArray[Any]) -> Probabilities:
    return np.asarray(np.bincount(groups.query, weights=values, minlength=groups.queries), np.float64)


def _tie_groups(scores: ScoreMatrix, matches: Matches) -> _TieGroups:
    better, tied = _places(scores, matches)
    queries, query = np.unique(matches.query, return_inverse=True)
    order = np.lexsort((better, query))
    query, better, tied = query[order], better[order], tied[order]
    new = np.ones(len(query), bool)
    new[1:] = (query[1:] != query[:-1]) | (better[1:] != better[:-1])
    start = np.flatnonzero(new)
    sizes = np.diff(np.append(start, len(query)))
    first_of_query = np.searchsorted(query, query[start])
    return _TieGroups(query[start], better[start], tied[start], sizes, start - first_of_query, len(queries))


def _places(scores: ScoreMatrix, matches: Matches) -> tuple[Counts, Counts]:
    """For each pair: number of items in its row that score strictly higher, and that tie."""
    better, tied = np.empty(len(matches.query), np.int64), np.empty(len(matches.query), np.int64)
    values = scores.at(matches.query, matches.item)
    gallery = scores.shape[1]
    for rows, tile in scores.row_tiles():
        rising = np.sort(tile, axis=1)
        bounds = np.searchsorted(matches.query, np.arange(rows.start, rows.stop + 1))
        for row, (first, last) in enumerate(pairwise(bounds)):
            at_most = np.searchsorted(rising[row], values[first:last], side="right")
            below = np.searchsorted(rising[row], values[first:last], side="left")
            better[first:last] = gallery - at_most
            tied[first:last] = at_most - below
    return better, tied
