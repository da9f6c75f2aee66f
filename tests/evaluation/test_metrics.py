"""MRR, nDCG@10 and mAP are those of trec_eval (through ir-measures), averaged over the orders of ties."""

from __future__ import annotations

from itertools import permutations

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, RR, nDCG
from numpy.typing import NDArray

from cmpagl_core.evaluation.metrics import RankMetrics, first_rank, rank_metrics
from cmpagl_core.evaluation.recall import Matches, rank_queries
from cmpagl_core.ranking.scores import ScoreMatrix

MEASURES = [RR, nDCG @ 10, AP]


def ours(scores: NDArray[np.floating], matches: Matches) -> RankMetrics:
    matrix = ScoreMatrix.from_array(scores)
    return rank_metrics(matrix, matches, rank_queries(matrix, matches))


def theirs(orders: dict[str, list[int]], relevant: dict[str, set[int]]) -> list[float]:
    """orders: the gallery as it is ranked for each query."""
    qrels = {query: {str(item): 1 for item in items} for query, items in relevant.items()}
    run = {query: {str(item): float(-place) for place, item in enumerate(order)} for query, order in orders.items()}
    found = ir_measures.calc_aggregate(MEASURES, qrels, run)
    return [100 * found[measure] for measure in MEASURES]


@pytest.mark.parametrize("turned", [False, True])
def test_they_are_those_of_trec_eval(turned: bool) -> None:
    scores = np.random.default_rng(0).standard_normal((30, 150))
    owner = np.repeat(np.arange(30), 5)
    matches = Matches.own(owner, 30)
    if turned:
        scores, matches = np.ascontiguousarray(scores.T), matches.transposed()
    orders = {str(row): np.argsort(-scores[row]).tolist() for row in range(len(scores))}
    relevant: dict[str, set[int]] = {str(row): set() for row in range(len(scores))}
    for row, item in zip(matches.query, matches.item, strict=True):
        relevant[str(row)].add(int(item))
    found = ours(scores, matches)
    assert [found.mrr, found.ndcg10, found.map] == pytest.approx(theirs(orders, relevant))


@st.composite
def tied_queries(draw: st.DrawFn) -> tuple[list[float], set[int]]:
    size = draw(st.integers(2, 5))
    values = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=size, max_size=size))
    relevant = draw(st.sets(st.integers(0, size - 1), min_size=1))
    return values, relevant


@settings(max_examples=25)
@given(tied_queries())
def test_with_ties_they_are_the_average_over_all_orders(problem: tuple[list[float], set[int]]) -> None:
    values, relevant = problem
    orders = {
        str(number): sorted(order, key=lambda item: -values[item])
        for number, order in enumerate(permutations(range(len(values))))
    }
    expected = theirs(orders, dict.fromkeys(orders, relevant))
    items = np.array(sorted(relevant))
    matches = Matches(1, len(values), np.zeros(len(items), np.int64), items)
    found = ours(np.array([values]), matches)
    assert [found.mrr, found.ndcg10, found.map] == pytest.approx(expected)
    firsts = [min(order.index(item) + 1 for item in relevant) for order in orders.values()]
    assert found.median_rank == pytest.approx(np.mean(firsts))


def test_the_median_rank_is_that_of_the_first_match() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0]])
    found = ours(scores, Matches.own([0, 0, 1], 3))
    assert found.median_rank == 1.0
    ranking = rank_queries(ScoreMatrix.from_array(scores), Matches.own([0, 1, 2], 3))
    assert first_rank(ranking).tolist() == [1.0, 2.0, 3.0]


def test_tiles_leave_them_as_they_are() -> None:
    scores = np.random.default_rng(1).uniform(0, 1, (12, 30)).round(1)
    matches = Matches.own(np.arange(30) % 11, 12)
    matrix = ScoreMatrix.from_array(scores, budget_bytes=1)
    assert rank_metrics(matrix, matches, rank_queries(matrix, matches)) == ours(scores, matches)
