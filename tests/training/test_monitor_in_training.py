"""Each failure signature is provoked in a real training: told in one line, logged, and drawn beside its figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cmpagl_core.datasets.prepared import PreparedDataset
from cmpagl_core.datasets.writing import Provenance, write_prepared
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.progress import Silent
from cmpagl_core.recipe import Recipe
from cmpagl_core.runs import Run
from cmpagl_core.training import loop, setup
from cmpagl_core.training.curves import curve_panels
from cmpagl_core.training.journal import read_journal
from cmpagl_core.training.learner import Learner
from cmpagl_core.training.monitor import (
    COLLAPSED_COSINE,
    DEAD_GATE,
    DOMINATING_SHARE,
    GUESSING_LOSS,
    GUESSING_SHARE,
    SPIKE_FACTOR,
)
from cmpagl_core.training.step import StepFigures

CPU = torch.device("cpu")
NO_FUSION = ("fusion_encoder.enabled=false", "losses.itm=0", "losses.mlm=0")
STILL = ("text_encoder.dropout=0", "image_encoder.drop_path=0", "data.augment=none", "data.crop_scale_min=1.0")

MakeRecipe = Callable[..., Recipe]
Events = list[dict[str, Any]]


def trained(recipe: Recipe, data: PreparedDataset, root: Path) -> tuple[Run, Events]:
    """A run and the events of its log, its curves left out: importing matplotlib takes longer than the training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_curves", lambda root, progress: None)
        run = loop.fit(recipe, data, root, Silent(), CPU)
    return run, list(read_journal(run.log_path))


def sentence(events: Events, warning: str) -> str:
    """What was said of a warning: once, in one line, and marked in one panel among the lines that it is about."""
    (told,) = [event["sentence"] for event in events if event["event"] == "warning" and event["name"] == warning]
    (drawn,) = [panel for panel in curve_panels(events) if warning in [name for name, _ in panel.warnings]]
    assert drawn.lines
    assert "\n" not in told
    return str(told)


def of(events: Events, kind: str) -> Events:
    return [event for event in events if event["event"] == kind]


def test_drawing_all_features_together_is_told_as_collapse(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    together = ("losses.itc=0", "losses.triplet=intra", "losses.margin_cosine=0", "losses.intra_weight=50")
    recipe = tiny_recipe(*NO_FUSION, *together, "optim.lr=0.02", "train.epochs=8", "train.ema_decay=0")
    _, events = trained(recipe, squares, tmp_path / "run")
    told = sentence(events, "collapsed features")
    assert "losses.itc" in told
    assert of(events, "epoch")[-1]["unmatched_cosine"] > COLLAPSED_COSINE
    assert of(events, "epoch")[0]["unmatched_cosine"] < COLLAPSED_COSINE


def test_a_scale_that_its_maximum_holds_down_is_told(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    low = ("losses.logit_scale_max=10", "optim.lr=1.0e-4", "train.epochs=1")
    _, events = trained(tiny_recipe(*NO_FUSION, *low), squares, tmp_path / "run")
    told = sentence(events, "logit scale at its clamp")
    assert told.startswith("logit scale at its clamp: 10.0 after epoch 1")
    assert "losses.logit_scale_max" in told
    assert of(events, "epoch")[0]["logit_scale"] == pytest.approx(10, rel=1e-3)


def test_a_loss_with_too_large_a_weight_is_told_as_dominating(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe("losses.triplet_weight=1000", "train.epochs=1")
    _, events = trained(recipe, squares, tmp_path / "run")
    told = sentence(events, "one loss dominates")
    assert told.startswith("one loss dominates: triplet makes up")
    assert "losses.triplet_weight" in told
    assert of(events, "epoch")[0]["gradient_shares"]["triplet"] > DOMINATING_SHARE


def test_gates_that_do_not_open_are_told_after_the_warm_up(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe("optim.lr=1.0e-5", "optim.warmup_fraction=0.4", "train.epochs=3")
    _, events = trained(recipe, squares, tmp_path / "run")
    told = sentence(events, "dead global window")
    assert "the gates of stage 1, stage 2, stage 3, stage 4 are still under" in told
    assert "after epoch 2" in told  # the warm-up takes four of nine steps, the first epoch three
    assert all(size < DEAD_GATE for size in of(events, "epoch")[1]["gates"].values())


def test_a_gradient_far_beyond_the_usual_is_told_with_its_step(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulate = loop.accumulate

    def broken_once(learner: Learner, batches: Any, epoch: int, step: int, with_shares: bool) -> StepFigures:
        """One loss blown up, as by a batch of broken images; its gradient is the network's own."""
        if step != 26:
            return accumulate(learner, batches, epoch, step, with_shares)
        blown = learner.recipe.losses.model_copy(update={"itc": 300.0})
        sick = dataclasses.replace(learner, recipe=learner.recipe.model_copy(update={"losses": blown}))
        return accumulate(sick, batches, epoch, step, with_shares)

    monkeypatch.setattr(loop, "accumulate", broken_once)
    recipe = tiny_recipe(*NO_FUSION, *STILL, "losses.triplet=none", "train.epochs=10", "optim.lr=1.0e-3")
    _, events = trained(recipe, squares, tmp_path / "run")
    told = sentence(events, "gradient spike")
    assert "its norm at step 27 is" in told
    norms = [event["gradient_norm"] for event in of(events, "step")]
    assert norms[26] > SPIKE_FACTOR * sorted(norms[:26])[13]


def scrambled(data: PreparedDataset, root: Path) -> PreparedDataset:
    """The same images, those to train on with the captions of others; validation is as it was."""
    images = data.images.assign(path=[str((data.root / path).resolve()) for path in data.images["path"]])
    trains = data.captions["image_id"].isin(images.loc[images["split"] == "train", "image_id"])
    texts = data.captions.loc[trains, "text"].tolist()
    captions = data.captions.copy()
    captions.loc[trains, "text"] = texts[10:] + texts[:10]
    return write_prepared(root, images, captions, Provenance(name="scrambled"))


@pytest.mark.slow  # test_monitor.py tells the same of figures
def test_unlearning_what_validation_asks_while_the_loss_falls_is_told_as_overfitting(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = ("train.ema_decay=0", "train.validate_every_epochs=30")
    recipe = tiny_recipe(*NO_FUSION, *STILL, *once, "train.epochs=30", "optim.lr=3.0e-3")
    good, _ = trained(recipe, squares, tmp_path / "good")

    def go_on(recipe: Recipe, vocab_size: int, **options: Any) -> torch.nn.Module:
        model = build_model(recipe, vocab_size, **options)
        model.load_state_dict(good.load().model.state_dict())
        return model

    monkeypatch.setattr(setup, "build_model", go_on)
    pace = ("optim.lr=2.0e-4", "optim.warmup_fraction=0", "train.epochs=14", "train.validate_every_epochs=2")
    worse = tiny_recipe(*NO_FUSION, *STILL, "train.ema_decay=0", *pace)
    _, events = trained(worse, scrambled(squares, tmp_path / "scrambled"), tmp_path / "worse")
    told = sentence(events, "overfitting")
    assert told.startswith("overfitting: validation mR fell 3 times in a row, to")


def test_a_matching_head_that_does_not_learn_is_told(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe(*STILL, "losses.mlm=0", "optim.lr=1.0e-5", "optim.warmup_fraction=0", "train.epochs=3")
    _, events = trained(recipe, squares, tmp_path / "run")
    told = sentence(events, "idle matching head")
    assert told.startswith("idle matching head: after epoch 3 ITM's loss is")
    assert all(event["terms"]["itm"] > GUESSING_SHARE * GUESSING_LOSS for event in of(events, "epoch"))


def test_every_figure_that_the_watch_looks_at_is_logged_and_drawn(
    squares: PreparedDataset, tiny_recipe: MakeRecipe, tmp_path: Path
) -> None:
    _, events = trained(tiny_recipe("train.epochs=2"), squares, tmp_path / "run")
    panels = {panel.title: panel.lines for panel in curve_panels(events)}
    epochs, steps = of(events, "epoch"), of(events, "step")
    assert panels["loss"]["itm"] == [(event["epoch"], event["terms"]["itm"]) for event in epochs]
    assert panels["logit scale"]["scale"] == [(event["epoch"], event["logit_scale"]) for event in epochs]
    assert panels["logit scale"]["its clamp"] == [(1, 100.0), (2, 100.0)]
    assert [y for _, y in panels["cosine of unmatched pairs"][""]] == [event["unmatched_cosine"] for event in epochs]
    assert set(panels["gates of the global window"]) == {"stage 1", "stage 2", "stage 3", "stage 4"}
    shares = panels["share of the gradient"]
    assert sum(points[0][1] for points in shares.values()) == pytest.approx(1, abs=1e-4)
    assert [y for _, y in panels["share of time waiting for images"][""]] == [e["waiting_share"] for e in epochs]
    assert [y for _, y in panels["gradient norm"][""]] == [event["gradient_norm"] for event in steps]
    assert [x for x, _ in panels["learning rate of new parts"][""]] == pytest.approx([n / 3 for n in range(1, 7)])
    assert len(panels["validation recall (%)"]) == 3
