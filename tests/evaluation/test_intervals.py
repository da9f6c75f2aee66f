"""Intervals cover, tests keep their level, and the same run twice is the same."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmpagl_core.errors import MismatchError
from cmpagl_core.evaluation.intervals import METRICS, PerImage, bootstrap, compare, holm


def random_results(images: int, seed: int, rate: float = 0.3, captions: int = 5) -> PerImage:
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), captions)
    i2t = (rng.uniform(size=(images, 3)) < rate).astype(float)
    t2i = (rng.uniform(size=(len(owner), 3)) < rate).astype(float)
    return PerImage.of([f"image {row}" for row in range(images)], i2t, t2i, owner)


def test_metrics_are_means_over_queries() -> None:
    i2t = np.array([[1.0, 1.0, 1.0], [np.nan] * 3, [0.0, 0.5, 1.0]])
    t2i = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.5], [0.0, 1.0, 1.0]])
    results = PerImage.of(["b", "c", "a"], i2t, t2i, np.array([0, 2, 2]))
    assert results.image_ids == ("a", "b")
    expected = [50.0, 75.0, 100.0, 100 / 3, 200 / 3, 250 / 3]
    assert results.metrics() == pytest.approx([*expected, np.mean(expected)])


def test_the_interval_is_the_binomial_one() -> None:
    low, high = bootstrap(random_results(1000, seed=0, rate=0.2), samples=2000)[0]
    half_width = 1.96 * np.sqrt(0.2 * 0.8 / 1000) * 100
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.1)


def test_shuffling_the_files_leaves_the_interval() -> None:
    results = random_results(50, seed=1)
    order = np.random.default_rng(2).permutation(50)
    owner = np.repeat(np.arange(50), 5)
    t2i = np.repeat(results.hits[:, 3:] / 5, 5, axis=0)
    plain = PerImage.of(results.image_ids, results.hits[:, :3], t2i, owner)
    shuffled = PerImage.of(
        [results.image_ids[row] for row in order],
        results.hits[order, :3],
        t2i,
        np.argsort(order)[owner],
    )
    assert (bootstrap(plain) == bootstrap(shuffled)).all()


def test_a_thousand_resamples_of_the_rsicd_test_split_are_quick() -> None:
    results = random_results(1093, seed=3)
    started_at = time.perf_counter()
    bootstrap(results, samples=1000)
    assert time.perf_counter() - started_at < 5.0


def test_the_same_run_twice_differs_by_nothing() -> None:
    results = random_results(60, seed=4)
    rows = compare([results], [results], permutations=500)
    assert [row.metric for row in rows] == list(METRICS)
    assert {row.p for row in rows} == {row.p_holm for row in rows} == {1.0}
    assert {row.delta for row in rows} == {0.0}
    assert {row.ci95 for row in rows} == {(0.0, 0.0)}


def test_a_clear_difference_is_seen_and_signed() -> None:
    rows = compare([random_results(200, 5, rate=0.2)], [random_results(200, 6, rate=0.5)], permutations=999)
    assert all(row.delta > 0 and row.ci95[0] > 0 for row in rows)
    assert all(row.p == pytest.approx(0.001) for row in rows)
    assert all(row.p_holm == pytest.approx(0.007) for row in rows)


def test_without_a_difference_p_is_even() -> None:
    p = [
        compare([random_results(40, seed)], [random_results(40, seed + 1000)], permutations=200, samples=10)[-1].p
        for seed in range(60)
    ]
    assert 0.4 < np.mean(p) < 0.65
    assert np.mean(np.array(p) < 0.05) < 0.15


def test_p_is_that_of_all_exchanges() -> None:
    a, b = random_results(8, 7), random_results(8, 8)
    shares = 100 * (b.hits - a.hits) / np.repeat(a.queries.sum(axis=0), 3)
    signs = 1 - 2 * ((np.arange(256)[:, None] >> np.arange(8)) & 1)
    exact = (np.abs(signs @ shares) >= np.abs(shares.sum(axis=0)) - 1e-9).mean(axis=0)
    found = [row.p for row in compare([a], [b], permutations=20_000, samples=10)][:6]
    assert found == pytest.approx(exact, abs=0.02)


def test_seeds_are_averaged_and_their_spread_is_shown() -> None:
    seeds = [random_results(30, seed) for seed in (10, 11, 12)]
    row = compare(seeds, [seeds[0]], permutations=99)[-1]
    each = [seed.metrics()[-1] for seed in seeds]
    assert row.a == pytest.approx(np.mean(each))
    assert row.a_std == pytest.approx(np.std(each, ddof=1))
    assert row.b_std is None


def test_results_of_other_images_cannot_be_paired() -> None:
    results = random_results(20, 13)
    other = replace(results, image_ids=tuple(f"x{name}" for name in results.image_ids))
    with pytest.raises(MismatchError, match="not of the same images and captions, so they cannot be paired"):
        compare([results], [other])
    with pytest.raises(MismatchError, match="the seeds of one side are not of the same images"):
        compare([results, other], [results])
    with pytest.raises(MismatchError, match="cannot be paired"):
        compare([results], [random_results(20, 13, captions=4)])


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=8))
def test_holm_is_the_step_down_rule(p: list[float]) -> None:
    ranked = sorted(range(len(p)), key=lambda place: p[place])
    expected, highest = [0.0] * len(p), 0.0
    for step, place in enumerate(ranked):
        highest = max(highest, min(1.0, p[place] * (len(p) - step)))
        expected[place] = highest
    assert holm(np.array(p)) == pytest.approx(expected)
