"""Scores do not depend on tiles, threads or file order; foreign matrices are checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cmpagl_core.errors import DataError
from cmpagl_core.ranking.scores import ScoreMatrix, tile_slices

ONE_ROW = 1  # a budget in bytes that leaves one row a tile


def features(rows: int, seed: int, width: int = 24) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def whole(scores: ScoreMatrix) -> NDArray[np.floating]:
    return np.concatenate([tile for _, tile in scores.row_tiles()])


def test_scores_are_cosines() -> None:
    images, texts = features(7, 0), features(11, 1)
    expected = torch.nn.functional.cosine_similarity(
        torch.from_numpy(images)[:, None].double(), torch.from_numpy(texts)[None].double(), dim=2
    )
    assert whole(ScoreMatrix.from_features(images, texts)) == pytest.approx(expected.numpy(), abs=2e-6)


def test_tiles_threads_order_and_direction_leave_every_bit_of_a_score() -> None:
    images, texts = features(40, 2), features(90, 3)
    texts[5] = texts[77]
    plain = whole(ScoreMatrix.from_features(images, texts))
    order = np.random.default_rng(4).permutation(90)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        tiny = ScoreMatrix.from_features(images, texts[order], budget_bytes=ONE_ROW)
        assert (whole(tiny) == plain[:, order]).all()
    finally:
        torch.set_num_threads(threads)
    assert (plain[:, order] == whole(tiny.transposed()).T).all()
    rows, cols = np.divmod(np.arange(40 * 90), 90)
    assert (tiny.at(rows, cols) == plain[:, order].ravel()).all()
    assert (plain[:, 5] == plain[:, 77]).all()


def test_a_held_matrix_is_the_same_and_a_large_one_is_not_held() -> None:
    scores = ScoreMatrix.from_features(features(9, 5), features(12, 6))
    assert (whole(scores.in_memory()) == whole(scores)).all()
    small = ScoreMatrix.from_features(features(9, 5), features(12, 6), budget_bytes=9 * 12 * 8 * 4 - 1)
    assert small.in_memory() is small


@pytest.mark.parametrize("budget", [ONE_ROW, 10**9])
def test_candidates_are_added_once_in_both_directions(budget: int) -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    scores = ScoreMatrix.from_array(base, budget).with_candidates([2, 0, 0], [1, 3, 0], [0.5, 0.25, 0.125])
    expected = base.copy()
    expected[2, 1] += 0.5
    expected[0, 3] += 0.25
    expected[0, 0] += 0.125
    rows, cols = np.divmod(np.arange(12), 4)
    assert (whole(scores) == expected).all()
    assert (whole(scores.transposed()) == expected.T).all()
    assert (scores.block(slice(1, 3), slice(1, 3)) == expected[1:3, 1:3]).all()
    assert (scores.at(rows, cols) == expected.ravel()).all()
    assert (base == np.arange(12).reshape(3, 4)).all()


def test_no_candidates_change_nothing_and_wrong_ones_are_refused() -> None:
    base = ScoreMatrix.zeros((3, 4))
    assert not whole(base.with_candidates([], [], np.empty(0))).any()
    assert not base.with_candidates([], [], np.empty(0)).at(np.array([1]), np.array([1])).any()
    with pytest.raises(ValueError, match="given twice"):
        base.with_candidates([1, 1], [2, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="outside"):
        base.with_candidates([3], [0], [0.1])


def test_a_memory_mapped_file_is_read_in_tiles(tmp_path: Path) -> None:
    saved = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float16)
    np.save(tmp_path / "s.npy", saved)
    scores = ScoreMatrix.from_array(np.load(tmp_path / "s.npy", mmap_mode="r"), budget_bytes=ONE_ROW)
    tiles = list(scores.row_tiles())
    assert len(tiles) == 20
    assert tiles[0][1].dtype == np.float32
    assert (whole(scores) == saved.astype(np.float32)).all()


def test_matrices_that_make_no_sense_are_refused_in_a_sentence() -> None:
    broken = np.zeros((2, 3))
    broken[1, 2] = np.nan
    with pytest.raises(DataError, match=r"scores\[1, 2\] is nan, not a finite number"):
        ScoreMatrix.from_array(broken)
    with pytest.raises(DataError, match=r"images x texts, not of shape \(6,\)"):
        ScoreMatrix.from_array(np.zeros(6))
    with pytest.raises(DataError, match="real numbers, not complex128"):
        ScoreMatrix.from_array(np.zeros((2, 2), complex))
    with pytest.raises(DataError, match="8 wide and text_features 9"):
        ScoreMatrix.from_features(features(3, 0, 8), features(3, 0, 9))
    zero = features(3, 0)
    zero[1] = 0
    with pytest.raises(DataError, match="text_features: row 1 is zero or not finite"):
        ScoreMatrix.from_features(features(3, 0), zero)
    with pytest.raises(DataError, match="image_features must be rows of real numbers"):
        ScoreMatrix.from_features(np.zeros((3, 4), int), zero)


def test_tiles_stay_within_their_share_of_the_budget() -> None:
    budget = 512 * 2**20
    assert all((part.stop - part.start) * 25_000 * 8 <= budget / 8 for part in tile_slices(5_000, 25_000, budget))
    assert [(part.start, part.stop) for part in tile_slices(3, 10**9, budget)] == [(0, 1), (1, 2), (2, 3)]
