"""The grid of both forms and the other re-rankings are what each gives alone, and the intervals are paired ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmpagl_core.errors import UsageError
from cmpagl_core.evaluation.heatmap import label_of, save_sensitivity
from cmpagl_core.evaluation.intervals import PerImage, compare
from cmpagl_core.evaluation.recall import Matches, rank_queries, recall
from cmpagl_core.evaluation.sensitivity import FORMS, Sensitivity, smr_sensitivity
from cmpagl_core.evaluation.tune import SmrGrid, choose_smr
from cmpagl_core.ranking.galr import galr
from cmpagl_core.ranking.offsets import TEMPERATURES, csls
from cmpagl_core.ranking.rerank import TEMPERED
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.ranking.smr import smr

OWNER = np.repeat(np.arange(40), 5)
IDS = [f"image {row:02d}" for row in range(40)]
GRID = (0.0, 1.0, 4.0)


def noisy_scores(seed: int = 0) -> ScoreMatrix:
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((40, 16))
    return ScoreMatrix.from_features(images, 0.5 * images[OWNER] + rng.standard_normal((200, 16)))


@pytest.fixture(scope="module")
def found() -> Sensitivity:
    return smr_sensitivity(noisy_scores(), OWNER, IDS, GRID, samples=300)


def test_every_pair_of_both_forms_is_what_tuning_finds(found: Sensitivity) -> None:
    for form in FORMS:
        choice = choose_smr(noisy_scores(), OWNER, SmrGrid(form, GRID))
        by_tuning = [(point.gamma1, point.gamma2, pytest.approx(point.mr)) for point in choice.grid]
        assert [(one.gamma1, one.gamma2, one.mr) for one in found.grid(form)] == by_tuning
        assert found.plain_mr == pytest.approx(choice.plain_mr)
        assert found.summary(form).best.mr == pytest.approx(choice.mr)


def test_the_others_are_what_each_gives_alone(found: Sensitivity) -> None:
    scores, matches = noisy_scores(), Matches.own(OWNER, 40)
    alone = {
        "galr": recall(galr(scores), matches, galr(scores.transposed())).mr,
        "csls": recall(csls(scores), matches).mr,
    }
    alone |= {
        f"{name} T = {temperature:g}": recall(reranking(scores, temperature), matches).mr
        for name, reranking in TEMPERED.items()
        for temperature in TEMPERATURES
    }
    assert {label_of(one): one.mr for one in found.others} == pytest.approx(alone)
    assert all(one.gain == pytest.approx(one.mr - found.plain_mr) for one in found.settings)


def test_zero_gammas_gain_nothing_in_either_form(found: Sensitivity) -> None:
    for form in FORMS:
        zero = found.grid(form)[0]
        assert (zero.gamma1, zero.gamma2) == (0.0, 0.0)
        assert (zero.gain, zero.gain_ci95) == (0.0, (0.0, 0.0))


def test_intervals_are_those_of_a_paired_comparison(found: Sensitivity) -> None:
    scores, matches = noisy_scores(), Matches.own(OWNER, 40)
    turned = matches.transposed()

    def per_image(i2t: ScoreMatrix, t2i: ScoreMatrix) -> PerImage:
        sides = (rank_queries(i2t, matches), rank_queries(t2i, turned))
        hits = [np.stack([side.hits(k) for k in (1, 5, 10)], axis=1) for side in sides]
        return PerImage.of(IDS, hits[0], hits[1], OWNER)

    plain = per_image(scores, scores.transposed())
    reranked = per_image(smr(scores, 1.0, 4.0), smr(scores.transposed(), 1.0, 4.0))
    expected = compare([plain], [reranked], permutations=99, samples=300)[-1].ci95
    shown = next(one for one in found.grid("multiply") if (one.gamma1, one.gamma2) == (1.0, 4.0))
    assert shown.gain_ci95 == pytest.approx(expected)


def test_how_often_each_pair_is_best_adds_up_to_one(found: Sensitivity) -> None:
    for form in FORMS:
        shares = [one.best_share for one in found.grid(form)]
        assert sum(share or 0.0 for share in shares) == pytest.approx(1.0)
    assert {one.best_share for one in found.others} == {None}


def test_a_summary_leaves_the_baseline_out(found: Sensitivity) -> None:
    grid = found.grid("multiply")
    moved = [one.gain for one in grid if (one.gamma1, one.gamma2) != (0.0, 0.0)]
    summary = found.summary("multiply")
    assert summary.median_gain == pytest.approx(float(np.median(moved)))
    assert summary.better_share == pytest.approx(np.mean([gain > 1e-9 for gain in moved]))
    assert summary.worst.gain == min(moved)


def test_shuffling_the_files_changes_nothing(found: Sensitivity) -> None:
    rng = np.random.default_rng(5)
    rows, cols = rng.permutation(40), rng.permutation(200)
    whole = noisy_scores().block(slice(0, 40), slice(0, 200))
    owner = np.argsort(rows)[OWNER[cols]]
    shuffled = smr_sensitivity(
        ScoreMatrix.from_array(whole[rows][:, cols]), owner, [IDS[row] for row in rows], GRID, samples=300
    )
    assert shuffled.plain_mr == pytest.approx(found.plain_mr)
    for one, other in zip(shuffled.settings, found.settings, strict=True):
        assert (one.mr, one.gain_ci95) == (pytest.approx(other.mr), pytest.approx(other.gain_ci95))


def test_empty_grids_and_no_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="the grid of gammas is empty"):
        smr_sensitivity(noisy_scores(), OWNER, IDS, ())
    with pytest.raises(UsageError, match="samples = 0 must be at least 1"):
        smr_sensitivity(noisy_scores(), OWNER, IDS, samples=0)


def test_the_figure_is_an_image_and_the_same_twice(found: Sensitivity, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_sensitivity(found, "synthetic", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (2250, 780)
