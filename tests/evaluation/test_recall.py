"""Recall in expectation over ties equals an average over real orders, and cannot be fooled."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cmpagl_core.datasets.same_caption import caption_classes
from cmpagl_core.errors import DataError
from cmpagl_core.evaluation.recall import (
    KS,
    Matches,
    rank_queries,
    recall,
    recalls,
)
from cmpagl_core.ranking.scores import ScoreMatrix


def own_rows(images: int, captions: int) -> NDArray[np.int64]:
    return np.repeat(np.arange(images), captions)


def brute_force_hits(scores: NDArray[np.float64], relevant: NDArray[np.bool_], k: int) -> list[float]:
    """For each query with a match: the share of gallery orders in which a stable sort hits within k."""
    hits = []
    for row, matches in zip(scores, relevant, strict=True):
        if not matches.any():
            continue
        orders = list(permutations(range(len(row))))
        found = 0
        for order in orders:
            ranked = sorted(order, key=lambda item: -row[item])
            found += any(matches[item] for item in ranked[:k])
        hits.append(found / len(orders))
    return hits


@st.composite
def small_problems(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    images = draw(st.integers(1, 5))
    owner = draw(st.lists(st.integers(0, images - 1), min_size=1, max_size=6))
    flat = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=images * len(owner), max_size=images * len(owner)))
    captions = draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=len(owner), max_size=len(owner)))
    return np.array(flat).reshape(images, len(owner)), np.array(owner), captions


@settings(max_examples=60, deadline=None)
@given(small_problems())
def test_hits_equal_the_average_over_all_orders_of_ties(
    problem: tuple[NDArray[np.float64], NDArray[np.int64], list[str]],
) -> None:
    scores, owner, captions = problem
    classes = caption_classes(captions)
    own = owner[None, :] == np.arange(len(scores))[:, None]
    identical = np.array(
        [
            [any(classes[t] == classes[u] for u in np.flatnonzero(own[i])) for t in range(len(owner))]
            for i in range(len(scores))
        ]
    )
    for matches, relevant in (
        (Matches.own(owner, len(scores)), own),
        (Matches.identical(owner, len(scores), classes), identical),
    ):
        i2t = rank_queries(ScoreMatrix.from_array(scores), matches)
        t2i = rank_queries(ScoreMatrix.from_array(scores).transposed(), matches.transposed())
        for k in (1, 2, 3):
            assert i2t.hits(k) == pytest.approx(brute_force_hits(scores, relevant, k), abs=1e-12)
            assert t2i.hits(k) == pytest.approx(brute_force_hits(scores.T, relevant.T, k), abs=1e-12)
            assert (i2t.pessimistic(k) <= i2t.hits(k) + 1e-12).all()
            assert (i2t.hits(k) <= i2t.optimistic(k) + 1e-12).all()


def test_a_constant_matrix_gives_chance() -> None:
    scores = ScoreMatrix.from_array(np.ones((100, 500), np.float32))
    result = recall(scores, Matches.own(own_rows(100, 5), 100))
    assert result.t2i.r1 == pytest.approx(1.0)
    assert result.t2i.r10 == pytest.approx(10.0)
    assert result.i2t.r1 == pytest.approx(1.0)
    assert result.mr_pessimistic == 0.0
    assert result.mr_optimistic == 100.0


def test_shuffling_the_files_never_changes_a_recall() -> None:
    rng = np.random.default_rng(0)
    owner = own_rows(30, 5)
    images, texts = rng.standard_normal((30, 16)), rng.standard_normal((150, 16))
    texts[40] = texts[7]
    image_order, text_order = rng.permutation(30), rng.permutation(150)
    shuffled = recall(
        ScoreMatrix.from_features(images[image_order], texts[text_order]),
        Matches.own(np.argsort(image_order)[owner[text_order]], 30),
    )
    plain = recall(ScoreMatrix.from_features(images, texts), Matches.own(owner, 30))
    assert shuffled.mr == pytest.approx(plain.mr, abs=1e-12)
    assert shuffled.t2i == plain.t2i


def test_images_without_captions_are_gallery_but_never_queries() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [1.0, 0.0]], np.float32)
    matches = Matches.own([0, 1], 3)
    assert rank_queries(ScoreMatrix.from_array(scores), matches).query.tolist() == [0, 1]
    backward = rank_queries(ScoreMatrix.from_array(scores).transposed(), matches.transposed())
    assert backward.hits(1).tolist() == [0.0, 1.0]


def test_captions_that_differ_in_white_space_alone_are_identical() -> None:
    assert caption_classes(["a  plane ", "a plane", "A plane"]).tolist() == [0, 0, 1]


def test_mr_of_perfect_features_is_the_best_one_can_have() -> None:
    features = np.eye(20, dtype=np.float32)
    scores = ScoreMatrix.from_features(features, np.repeat(features, 5, axis=0))
    assert recall(scores, Matches.own(own_rows(20, 5), 20)).mr == pytest.approx(100.0)


def test_k_beyond_the_gallery_is_a_certain_hit() -> None:
    ranking = rank_queries(ScoreMatrix.from_array(np.zeros((3, 3), np.float32)), Matches.own([0, 1, 2], 3))
    assert [ranking.hits(k).tolist() for k in KS[1:]] == [[1.0] * 3] * 2


def test_a_split_without_captions_and_scores_of_another_shape_say_so() -> None:
    nobody = rank_queries(
        ScoreMatrix.from_array(np.zeros((3, 3), np.float32)),
        Matches(3, 3, np.empty(0, np.int64), np.empty(0, np.int64)),
    )
    with pytest.raises(DataError, match="no query of this split has a match"):
        recalls(nobody)
    with pytest.raises(DataError, match="the scores are 3 x 4 but the split has 3 queries and 3 gallery items"):
        rank_queries(ScoreMatrix.from_array(np.zeros((3, 4), np.float32)), Matches.own([0, 1, 2], 3))
    with pytest.raises(DataError, match="caption_image must hold rows of the 3 images"):
        Matches.own([0, 3], 3)
