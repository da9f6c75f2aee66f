"""Each failure signature is provoked once, told once, and names its likely cause."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from cmpagl_core.training.monitor import EpochFigures, TrainingMonitor, matching_is_idle

HEALTHY = EpochFigures(
    epoch=3,
    warmed_up=True,
    loss=2.0,
    terms={"itc": 1.5, "itm": 0.5},
    unmatched_cosine=0.1,
    logit_scale=20.0,
    logit_scale_max=100.0,
    gradient_shares={"itc": 0.4, "itm": 0.6},
    gates={"stage 3": 0.02},
    waiting_share=0.1,
)


def test_a_healthy_training_gets_no_warning() -> None:
    monitor = TrainingMonitor()
    assert monitor.epoch(HEALTHY) == []
    assert [warning for step in range(200) for warning in monitor.step(step, 1.0 + 0.1 * (step % 7))] == []
    assert [warning for mr in (40.0, 39.0, 41.0, 40.5) for warning in monitor.validation(mr, 1.0)] == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"unmatched_cosine": 0.97}, "collapsed features: pairs that do not match have a mean cosine of 0.97"),
        ({"logit_scale": 100.0}, "logit scale at its clamp: 100.0 after epoch 3; likely"),
        (
            {"gradient_shares": {"itc": 0.01, "triplet": 0.99}},
            "one loss dominates: triplet makes up 99 % of the gradient.*losses.triplet_weight",
        ),
        ({"gates": {"stage 3": 0.02, "stage 4": 1e-5}}, "dead global window: the gates of stage 4 are still under"),
        ({"waiting_share": 0.8}, r"starving loader: 80 % of epoch 3 .*data\.workers"),
    ],
)
def test_a_sick_epoch_is_told_once(change: dict[str, object], sentence: str) -> None:
    monitor = TrainingMonitor()
    warnings = monitor.epoch(replace(HEALTHY, **change))  # type: ignore[arg-type]
    assert len(warnings) == 1
    assert re.match(sentence, warnings[0].sentence)
    assert monitor.epoch(replace(HEALTHY, **change)) == []  # type: ignore[arg-type]


def test_a_matching_head_that_only_guesses_is_told_after_three_epochs() -> None:
    guess = (math.log(3) + 2 * math.log(1.5)) / 3  # cross-entropy of always saying one in three
    idle, learning = (replace(HEALTHY, terms={"itc": 1.5, "itm": share * guess}) for share in (0.999, 0.97))
    monitor = TrainingMonitor()
    assert [monitor.epoch(one) for one in (idle, idle, learning, idle, idle)] == [[]] * 5
    (warning,) = monitor.epoch(idle)
    assert warning.sentence.startswith("idle matching head: after epoch 3 ITM's loss is 0.636, chance is 0.637")
    warming = replace(idle, warmed_up=False)
    assert [warning for _ in range(5) for warning in TrainingMonitor().epoch(warming)] == []


def test_a_log_tells_whether_the_matching_head_guessed_to_the_end() -> None:
    guessing, learnt = ({"event": "epoch", "terms": {"itc": 1.5, "itm": loss}} for loss in (0.63, 0.4))
    assert matching_is_idle([learnt, guessing, {"event": "end"}])
    assert not matching_is_idle([guessing, learnt])
    assert not matching_is_idle([{"event": "begin"}])
    assert not matching_is_idle([{"event": "epoch", "terms": {"itc": 1.5}}])


def test_gates_are_not_judged_during_the_warm_up() -> None:
    assert TrainingMonitor().epoch(replace(HEALTHY, warmed_up=False, gates={"stage 3": 0.0})) == []


def test_a_single_loss_cannot_dominate() -> None:
    assert TrainingMonitor().epoch(replace(HEALTHY, gradient_shares={"itc": 1.0})) == []


def test_features_that_are_not_a_number_are_no_collapse() -> None:
    assert TrainingMonitor().epoch(replace(HEALTHY, unmatched_cosine=float("nan"))) == []


def test_a_gradient_spike_is_told_beside_the_usual_norm() -> None:
    monitor = TrainingMonitor()
    for step in range(30):
        assert monitor.step(step, 2.0) == []
    (warning,) = monitor.step(30, 50.0)
    assert warning.sentence.startswith(
        "gradient spike: its norm at step 30 is 50, 25 times the usual; the learning rate is likely"
    )


def test_overflow_of_fp16_is_no_spike_and_is_not_remembered() -> None:
    monitor = TrainingMonitor(gradient_norms=[2.0] * 30)
    assert monitor.step(30, float("inf")) == []
    assert monitor.gradient_norms == [2.0] * 30


def test_validation_falling_while_the_loss_falls_is_overfitting() -> None:
    monitor = TrainingMonitor()
    figures = [(40.0, 3.0), (39.0, 2.0), (38.0, 1.0), (37.0, 0.5)]
    warnings = [monitor.validation(mr, loss) for mr, loss in figures]
    assert warnings[:3] == [[], [], []]
    assert warnings[3][0].sentence.startswith(
        "overfitting: validation mR fell 3 times in a row, to 37.00, while the loss"
    )


def test_a_resumed_monitor_remembers() -> None:
    monitor = TrainingMonitor()
    monitor.epoch(replace(HEALTHY, waiting_share=0.8))
    again = TrainingMonitor(**monitor.state())
    assert again.epoch(replace(HEALTHY, waiting_share=0.8)) == []
