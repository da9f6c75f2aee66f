"""The best gammas are found by brute force too, and the smallest win among equals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmpagl_core.errors import CmpaglError, UsageError
from cmpagl_core.evaluation.heatmap import save_heatmap
from cmpagl_core.evaluation.recall import Matches, recall
from cmpagl_core.evaluation.stages import Available, Base, Stage
from cmpagl_core.evaluation.tune import SmrGrid, choose_params, choose_smr, choose_temperature
from cmpagl_core.ranking.offsets import csls
from cmpagl_core.ranking.rerank import (
    TEMPERED,
    ChosenParams,
    Directions,
    Gammas,
    RerankParams,
    Tempered,
    rerank,
)
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.ranking.smr import SmrForm, smr

OWNER = np.repeat(np.arange(40), 5)


def noisy_scores(seed: int = 0) -> ScoreMatrix:
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((40, 16))
    return ScoreMatrix.from_features(images, 0.5 * images[OWNER] + rng.standard_normal((200, 16)))


@pytest.mark.parametrize("form", ["multiply", "add"])
def test_the_choice_is_the_best_of_the_grid(form: SmrForm) -> None:
    scores, matches = noisy_scores(), Matches.own(OWNER, 40)
    choice = choose_smr(scores, OWNER, SmrGrid(form, (0.0, 0.5, 2.0)))
    by_hand = {
        (first, second): recall(
            smr(scores, first, second, form), matches, smr(scores.transposed(), first, second, form)
        ).mr
        for first in (0.0, 0.5, 2.0)
        for second in (0.0, 0.5, 2.0)
    }
    assert {(point.gamma1, point.gamma2): point.mr for point in choice.grid} == by_hand
    assert choice.mr == max(by_hand.values()) == by_hand[choice.gamma1, choice.gamma2]
    assert choice.plain_mr == recall(scores, matches).mr


def test_where_nothing_helps_the_gammas_are_zero() -> None:
    features = np.eye(20)
    choice = choose_smr(ScoreMatrix.from_features(features, features), np.arange(20))
    assert choice.gammas == Gammas("multiply", 0.0, 0.0)
    assert choice.mr == choice.plain_mr == pytest.approx(100.0)


@pytest.mark.parametrize("name", TEMPERED)
def test_the_temperature_is_the_best_one(name: Tempered) -> None:
    scores, matches = noisy_scores(1), Matches.own(OWNER, 40)
    by_hand = {t: recall(TEMPERED[name](scores, t), matches).mr for t in (1.0, 10.0, 50.0)}
    assert by_hand[choose_temperature(name, scores, OWNER, (1.0, 10.0, 50.0))] == max(by_hand.values())
    stages = (Stage("cosine+smr", "cosine", ("smr",)), Stage(name, "cosine", (name,)))
    found = choose_params(stages, lambda _: scores, OWNER, Available(("cosine",), ChosenParams())).of("cosine")
    assert found.smr == choose_smr(scores, OWNER).gammas
    assert found.temperature(name) == choose_temperature(name, scores, OWNER)


def test_each_step_of_a_chain_is_chosen_on_what_it_re_ranks() -> None:
    scores = noisy_scores(2)
    stages = (
        Stage("cosine+smr", "cosine", ("smr",)),
        Stage("csls+smr+sinkhorn", "cosine", ("csls", "smr", "sinkhorn")),
    )
    found = choose_params(
        stages, lambda _: scores, OWNER, Available(("cosine",), ChosenParams()), SmrGrid(gammas=(0.0, 0.5, 4.0))
    )
    after_csls = Directions(csls(scores))
    by_hand = choose_smr(after_csls, OWNER, SmrGrid(gammas=(0.0, 0.5, 4.0)))
    assert found.of("cosine").smr == choose_smr(scores, OWNER, SmrGrid(gammas=(0.0, 0.5, 4.0))).gammas
    assert found.of("cosine+csls").smr == by_hand.gammas
    assert by_hand.plain_mr == recall(csls(scores), Matches.own(OWNER, 40)).mr
    after_smr = rerank(after_csls, "smr", RerankParams(by_hand.gammas))
    assert found.of("cosine+csls+smr").sinkhorn == choose_temperature("sinkhorn", after_smr, OWNER)
    assert found.of("cosine+csls").sinkhorn is None


def test_what_is_known_is_not_chosen_again_and_what_hangs_on_a_change_is_forgotten() -> None:
    known = ChosenParams({"cosine": RerankParams(Gammas("add", 9.0, 9.0))})
    stages = (Stage("cosine+smr", "cosine", ("smr",)),)

    def unasked(base: Base) -> ScoreMatrix:
        raise AssertionError("nothing is to be scored")

    assert choose_params(stages, unasked, OWNER, Available(("cosine",), known)) == known
    more = known.adding("cosine+smr", RerankParams(sinkhorn=5.0)).adding("cosine+smr+csls", RerankParams(sinkhorn=1.0))
    assert (
        more.adding("cosine", RerankParams(Gammas("add", 9.0, 9.0), dual_softmax=2.0)).of("cosine+smr").sinkhorn == 5.0
    )
    changed = more.adding("cosine", RerankParams(Gammas("add", 1.0, 9.0)))
    assert list(changed.by_scores) == ["cosine"]


def test_what_two_chose_at_once_is_kept_from_both() -> None:
    before = ChosenParams({"cosine": RerankParams(Gammas("add", 9.0, 9.0))})
    ours = before.adding("cosine", RerankParams(Gammas("add", 9.0, 9.0), sinkhorn=5.0))
    theirs = before.adding("cosine", RerankParams(Gammas("add", 1.0, 1.0), dual_softmax=2.0))
    both = RerankParams(Gammas("add", 1.0, 1.0), dual_softmax=2.0, sinkhorn=5.0)
    assert theirs.taking_over(before, ours).by_scores == {"cosine": both}
    assert ours.taking_over(before, theirs).by_scores == {"cosine": both}
    chained = ours.adding("cosine+smr", RerankParams(sinkhorn=3.0))  # with gammas that they have changed
    assert theirs.taking_over(before, chained).by_scores == {"cosine": both}
    assert ours.taking_over(before, chained) == chained


def test_empty_grids_and_wrong_gammas_are_refused() -> None:
    with pytest.raises(UsageError, match="the grid of gammas is empty"):
        choose_smr(noisy_scores(), OWNER, SmrGrid(gammas=()))
    with pytest.raises(UsageError, match="the grid of temperatures is empty"):
        choose_temperature("sinkhorn", noisy_scores(), OWNER, ())
    with pytest.raises(UsageError, match=r"gamma1 = -1.0 must be"):
        choose_smr(noisy_scores(), OWNER, SmrGrid(gammas=(-1.0,)))


def test_the_heat_map_is_an_image_and_the_same_twice(tmp_path: Path) -> None:
    choice = choose_smr(noisy_scores(), OWNER, SmrGrid(gammas=(0.0, 1.0)))
    for name in ("a.png", "b.png"):
        save_heatmap(choice, "synthetic", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (960, 780)


def test_without_matplotlib_the_heat_map_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(CmpaglError, match=r"drawing needs matplotlib; pip install 'cmpagl\[plots\]'"):
        save_heatmap(choose_smr(noisy_scores(), OWNER, SmrGrid(gammas=(0.0,))), "", tmp_path / "a.png")
