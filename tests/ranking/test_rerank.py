"""Every re-ranking equals a loop written from the method, in any tiling and any order of the files."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cmpagl_core.errors import UsageError
from cmpagl_core.ranking.galr import galr, shared_positions
from cmpagl_core.ranking.offsets import SINKHORN_TOLERANCE, TEMPERATURES, csls, dual_softmax, sinkhorn
from cmpagl_core.ranking.rank_stats import RankStats, rank_rows
from cmpagl_core.ranking.rerank import Directions, Gammas, RerankParams, parse_rerankings, rerank
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.ranking.smr import SmrForm, smr

Matrix = NDArray[np.float64]
ONE_ROW = 1


def random_scores(queries: int = 20, gallery: int = 30, seed: int = 1) -> NDArray[np.float32]:
    """Rounded, so that many scores tie."""
    return np.random.default_rng(seed).uniform(-1, 1, (queries, gallery)).round(1).astype(np.float32)


def whole(scores: ScoreMatrix) -> Matrix:
    return np.concatenate([tile for _, tile in scores.row_tiles()]).astype(np.float64)


def rank_in(values: list[float], value: float) -> int:
    return sum(other > value for other in values)


def smr_loop(s: Matrix, gamma1: float, gamma2: float, form: str) -> Matrix:
    out = np.zeros(s.shape)
    low, high = s.min(), s.max()
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            column, row = list(s[:, j]), list(s[i])
            b, f = rank_in(column, s[i, j]), rank_in(row, s[i, j])
            span = max(column) - min(column)
            e = (s[i, j] - min(column)) / span if span > 0 else 0.0
            weight = gamma1 * math.exp(-0.05 * b) + gamma2 * e
            norm = (s[i, j] - low) / (high - low) if high > low else 0.0
            out[i, j] = norm * (1 + weight) if form == "multiply" else math.exp(-0.05 * f) + weight
    return out


def galr_loop(s: Matrix, k: int, w1: float, w2: float) -> Matrix:
    out = np.zeros(s.shape)
    for i in range(s.shape[0]):
        row = list(s[i])
        chosen = [j for j in range(len(row)) if rank_in(row, row[j]) < k]
        backward = {j: rank_in(list(s[:, j]), s[i, j]) for j in chosen}
        for j in chosen:
            position = sum(backward[other] < backward[j] for other in chosen)
            total = sum(s[:, j].tolist())
            share = s[i, j] / total if abs(total) > 1e-12 else 0.0
            out[i, j] = w1 * share + math.exp(-0.05 * rank_in(row, row[j])) + w2 * math.exp(-0.05 * position)
    return out


def csls_loop(s: Matrix, k: int) -> Matrix:
    out = np.zeros(s.shape)
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            row, column = sorted(s[i], reverse=True)[:k], sorted(s[:, j], reverse=True)[:k]
            out[i, j] = 2 * s[i, j] - sum(row) / len(row) - sum(column) / len(column)
    return out


def dual_softmax_loop(s: Matrix, t: float) -> Matrix:
    out = np.zeros(s.shape)
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            over_row = sum(math.exp(t * value) for value in s[i])
            over_column = sum(math.exp(t * value) for value in s[:, j])
            out[i, j] = math.exp(t * s[i, j]) / over_row * math.exp(t * s[i, j]) / over_column
    return out


def sinkhorn_loop(s: Matrix, t: float) -> Matrix:
    """By factors in place of logarithms, each in turn set to what settles its side, until nothing moves."""
    rows, cols = s.shape
    kernel = [[math.exp(t * s[i, j]) for j in range(cols)] for i in range(rows)]
    u, v = [1.0] * rows, [1.0] * cols
    for _ in range(10_000):
        before = u
        u = [1 / rows / sum(kernel[i][j] * v[j] for j in range(cols)) for i in range(rows)]
        v = [1 / cols / sum(kernel[i][j] * u[i] for i in range(rows)) for j in range(cols)]
        if u == pytest.approx(before, rel=1e-12, abs=0.0):
            break
    return np.array([[u[i] * kernel[i][j] * v[j] for j in range(cols)] for i in range(rows)])


RERANKERS: dict[str, Callable[[ScoreMatrix], ScoreMatrix]] = {
    "multiply": lambda s: smr(s, 1.0, 4.0),
    "add": lambda s: smr(s, 0.5, 2.0, "add"),
    "galr": lambda s: galr(s, k=7),
    "csls": lambda s: csls(s),
    "dual_softmax": lambda s: dual_softmax(s, 20.0),
    "sinkhorn": lambda s: sinkhorn(s, 20.0, tolerance=1e-10),
    "csls then smr": lambda s: smr(csls(s), 1.0, 1.0),
    "smr then galr": lambda s: galr(smr(s, 1.0, 1.0), k=5),
}
LOOPS: dict[str, Callable[[Matrix], Matrix]] = {
    "multiply": lambda s: smr_loop(s, 1.0, 4.0, "multiply"),
    "add": lambda s: smr_loop(s, 0.5, 2.0, "add"),
    "galr": lambda s: galr_loop(s, 7, 0.3, 1.1),
    "csls": lambda s: csls_loop(s, 10),
    "dual_softmax": lambda s: np.log(dual_softmax_loop(s, 20.0)),
    "sinkhorn": lambda s: np.log(sinkhorn_loop(s, 20.0)),
}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (1, 5), (5, 1)])
def test_it_equals_a_loop_written_from_the_method(name: str, shape: tuple[int, int]) -> None:
    scores = random_scores(*shape)
    expected = LOOPS[name](scores.astype(np.float64))
    assert whole(RERANKERS[name](ScoreMatrix.from_array(scores))) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", RERANKERS)
def test_tiles_and_single_pairs_and_the_transpose_are_the_whole(name: str) -> None:
    scores = random_scores()
    plain = whole(RERANKERS[name](ScoreMatrix.from_array(scores)))
    tiled = RERANKERS[name](ScoreMatrix.from_array(scores, ONE_ROW))
    assert (whole(tiled) == plain).all()
    assert (whole(tiled.transposed()) == plain.T).all()
    assert (whole(tiled.transposed().transposed()) == plain).all()
    rows, cols = np.divmod(np.arange(plain.size), plain.shape[1])
    assert (tiled.at(rows, cols) == plain.ravel()).all()


@pytest.mark.parametrize("name", RERANKERS)
def test_shuffling_the_files_shuffles_the_scores_and_no_more(name: str) -> None:
    rng = np.random.default_rng(5)
    scores = rng.standard_normal((20, 30)).astype(np.float32)
    scores[:, 4] = scores[:, 9]  # identical captions
    rows, cols = rng.permutation(20), rng.permutation(30)
    plain = whole(RERANKERS[name](ScoreMatrix.from_array(scores)))
    shuffled = whole(RERANKERS[name](ScoreMatrix.from_array(scores[rows][:, cols])))
    assert (shuffled == plain[rows][:, cols]).all()
    assert (plain[:, 4] == plain[:, 9]).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), queries=st.integers(1, 9), gallery=st.integers(1, 9))
def test_smr_with_zero_weights_keeps_every_ranking(seed: int, queries: int, gallery: int) -> None:
    scores = np.random.default_rng(seed).uniform(-1, 1, (queries, gallery)).round(1).astype(np.float32)
    reranked = whole(smr(ScoreMatrix.from_array(scores), 0.0, 0.0))
    assert (rank_rows(reranked) == rank_rows(scores)).all()
    assert (rank_rows(reranked.T) == rank_rows(scores.T)).all()


@settings(max_examples=40)
@given(st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=8), min_size=1, max_size=1))
def test_equal_scores_share_the_best_rank(rows: list[list[float]]) -> None:
    scores = np.array(rows)
    expected = [[rank_in(row, value) for value in row] for row in rows]
    assert rank_rows(scores).tolist() == expected


@pytest.mark.parametrize("budget", [ONE_ROW, 10**9])
def test_ranks_kept_in_a_file_are_those_kept_in_memory(budget: int) -> None:
    scores = random_scores(queries=12, gallery=7)
    rank_stats = RankStats.of(ScoreMatrix.from_array(scores, budget))
    everything = (slice(0, 12), slice(0, 7))
    assert (rank_stats.forward(*everything) == rank_rows(scores)).all()
    assert (rank_stats.backward(*everything) == rank_rows(scores.T).T).all()
    assert (rank_stats.transposed().forward(*everything[::-1]) == rank_rows(scores.T)).all()
    assert rank_stats.forward_at(np.array([3]), np.array([2])) == rank_rows(scores)[3, 2]


@pytest.mark.parametrize("form", ["multiply", "add"])
def test_a_constant_matrix_stays_constant(form: SmrForm) -> None:
    constant = ScoreMatrix.from_array(np.full((4, 6), 0.3, np.float32))
    others = (galr(constant), csls(constant), dual_softmax(constant, 100.0), sinkhorn(constant, 100.0))
    for reranked in (smr(constant, 1.0, 4.0, form), *others):
        assert len(np.unique(whole(reranked))) == 1


def test_k_is_clamped_to_what_there_is() -> None:
    scores = ScoreMatrix.from_array(random_scores(4, 3))
    assert (whole(galr(scores, k=500)) == whole(galr(scores, k=3))).all()
    assert whole(csls(scores, 500)) == pytest.approx(csls_loop(whole(scores), 500))


def test_all_that_tie_with_the_last_candidate_are_candidates() -> None:
    scores = ScoreMatrix.from_array(np.array([[0.9, 0.5, 0.5, 0.1], [0.1, 0.2, 0.3, 0.4]], np.float32))
    assert (whole(galr(scores, k=2)) > 0).tolist() == [[True, True, True, False], [False, False, True, True]]


def test_positions_restart_with_each_group_and_are_shared() -> None:
    groups, keys = np.array([1, 0, 1, 0, 1]), np.array([5, 2, 5, 1, 9])
    assert shared_positions(groups, keys).tolist() == [0, 1, 0, 0, 2]


def test_great_scores_of_foreign_models_do_not_overflow() -> None:
    scores = ScoreMatrix.from_array(np.array([[900.0, -900.0], [0.0, 5.0]]))
    assert np.isfinite(whole(dual_softmax(scores, 100.0))).all()
    assert np.isfinite(whole(sinkhorn(scores, 100.0))).all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", [(40, 200), (200, 40), (60, 60)])
def test_sinkhorn_gives_every_image_and_every_text_its_even_share(temperature: float, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    images, texts = (rng.standard_normal((count, 8)) for count in shape)
    features = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (images, texts))
    plan = np.exp(whole(sinkhorn(ScoreMatrix.from_features(*features), temperature)))
    assert plan.sum(axis=1) * shape[0] == pytest.approx(np.ones(shape[0]), abs=SINKHORN_TOLERANCE * 1.001)
    assert plan.sum(axis=0) * shape[1] == pytest.approx(np.ones(shape[1]), abs=SINKHORN_TOLERANCE * 1.001)


def test_both_directions_of_a_chain_are_the_rerankings_of_both_directions() -> None:
    scores = ScoreMatrix.from_array(random_scores())
    tuned = RerankParams(Gammas("multiply", 1.0, 2.0), 20.0, 10.0)
    once = rerank(Directions(scores), "csls", tuned)
    twice = rerank(once, "smr", tuned)
    assert (whole(twice.i2t) == whole(smr(csls(scores), 1.0, 2.0))).all()
    assert (whole(twice.t2i) == whole(smr(csls(scores.transposed()), 1.0, 2.0))).all()
    for name in parse_rerankings("galr+csls+dual-softmax+sinkhorn"):
        both = rerank(Directions(scores), name, tuned)
        assert (whole(rerank(Directions(scores.transposed()), name, tuned).i2t) == whole(both.t2i)).all()


def test_wrong_parameters_are_refused_in_a_sentence() -> None:
    scores = ScoreMatrix.from_array(random_scores())
    with pytest.raises(UsageError, match=r"gamma1 = -1.0 must be a number from 0 to 1,000"):
        smr(scores, -1.0, 0.0)
    with pytest.raises(UsageError, match="gamma2 = nan"):
        smr(scores, 1.0, math.nan)
    with pytest.raises(UsageError, match="k = 0 must be at least 1"):
        galr(scores, k=0)
    with pytest.raises(UsageError, match="neighbours = 0"):
        csls(scores, 0)
    with pytest.raises(UsageError, match=r"temperature = 0.0 must be"):
        dual_softmax(scores, 0.0)
    with pytest.raises(UsageError, match="temperature = inf must be"):
        sinkhorn(scores, math.inf)
    with pytest.raises(UsageError, match=r"tolerance = 0.0 must be above 0"):
        sinkhorn(scores, 10.0, tolerance=0.0)
    with pytest.raises(
        UsageError, match="'smrt' is not a re-ranking; choose from smr, galr, csls, dual_softmax, sinkhorn"
    ):
        parse_rerankings("smrt")
    with pytest.raises(UsageError, match="the parameters of smr were never chosen"):
        rerank(Directions(scores), "smr", RerankParams())
