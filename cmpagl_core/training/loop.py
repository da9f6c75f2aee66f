"""The training loop, from the first batch to the finished run: `fit`, `train_epoch`, `validate_epoch`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import torch

from cmpagl_core.datasets.prepared import PreparedDataset, open_prepared
from cmpagl_core.device import usable_precision
from cmpagl_core.errors import InterruptedByUserError, LostPeerError
from cmpagl_core.evaluation.protocol import seen_of
from cmpagl_core.interruption import Interruption
from cmpagl_core.progress import Advance, Progress, Silent
from cmpagl_core.ranking.kept_params import Chooser, write_params
from cmpagl_core.ranks import ALONE, Ranks
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import load_recipe
from cmpagl_core.runs import (
    INFO_FILE,
    LOG_FILE,
    RECIPE_FILE,
    WEIGHTS_FILE,
    BestEpoch,
    Run,
    open_run,
    write_files,
    write_info,
)
from cmpagl_core.training.balance import fit_balance
from cmpagl_core.training.curves import draw_curves
from cmpagl_core.training.distill import DistillJob, Start, distill_job, distilled_start
from cmpagl_core.training.journal import Journal, SilentJournal
from cmpagl_core.training.learner import Learner, gates_by_stage
from cmpagl_core.training.monitor import EpochFigures, TrainingMonitor, TrainingWarning
from cmpagl_core.training.optim import schedule
from cmpagl_core.training.resume import Identity, Position, Tally, has_state, remove_state, write_state
from cmpagl_core.training.setup import Plan, begin, fill_cache, restore_training, run_info
from cmpagl_core.training.step import StepFigures, accumulate, update
from cmpagl_core.training.validate import Validation, choose_gammas, validate

_BEGUN = "begun"  # the message with which the first process lets the others join

STATE_EVERY_S = 20.0
"""Minimum time between two saved states; steps lost to a kill are repeated and give the same weights."""


@dataclass
class Training:
    """A training in progress."""

    root: Path
    plan: Plan
    learner: Learner
    identity: Identity
    position: Position
    journal: Journal
    monitor: TrainingMonitor
    progress: Progress
    interruption: Interruption
    job: DistillJob | None = None  # that its start came from
    state_written_at: float = 0.0

    @property
    def recipe(self) -> Recipe:
        return self.learner.recipe

    @property
    def ranks(self) -> Ranks:
        return self.learner.ranks


def fit(
    recipe: Recipe,
    prepared: PreparedDataset,
    root: Path,
    progress: Progress,
    device: torch.device,
    resume: bool = False,
    cache_root: Path | None = None,
    recipe_name: str = "recipe",
    distill_from: Sequence[PreparedDataset] = (),
    ranks: Ranks = ALONE,
) -> Run:
    """Train a recipe on a prepared data set and write a run to `root`.

    resume: continue from the state in `root`; on a CPU the final weights are identical. cache_root: where a frozen
    backbone's maps and distilled starts are cached; in `root` if None. distill_from: the data sets of the recipe's
    `distill` part. The caller holds the lock of `root` (`locks.py`). ranks: the processes of this training, of which
    this is the first; the others call `join_training`.
    Raises InterruptedByUserError when interrupted and LostPeerError when another process ends, saying how to resume.
    """
    interruption = Interruption.current()
    with interruption.caught():
        try:
            job = distill_job(recipe, prepared, distill_from, device)
            start = None if job is None or resume else distilled_start(job, cache_root or root, progress)
            training = open_training(
                recipe, recipe_name, prepared, root, progress, device, resume, interruption, job, start, ranks
            )
            places = {"root": root, "data": prepared.root, "cache": cache_root or root}
            ranks.tell(_BEGUN, {name: str(place.absolute()) for name, place in places.items()})
            with training.journal:
                prepare_cache(training, cache_root or root)
                train(training)
                return finish(training)
        except KeyboardInterrupt:
            if (root / INFO_FILE).is_file():
                return open_run(root)
            raise _stopped(root) from None
        except RuntimeError as error:
            if not ranks.lost(error):
                raise
            raise _lost(root) from error


def join_training(ranks: Ranks, device: torch.device) -> None:
    """Take part in the training that the first process of `ranks` has begun, once it has saved its first state.

    Every process reads that state, so all start alike; the run's folder must be on a disk that all share. Raises what
    `fit` raises.
    """
    interruption = Interruption.current()
    with interruption.caught():
        begun = ranks.hear(_BEGUN)
        root, cache_root = Path(begun["root"]), Path(begun["cache"])
        try:
            recipe, prepared = load_recipe(root / RECIPE_FILE), open_prepared(Path(begun["data"]))
            plan, learner, identity, position = restore_training(recipe, prepared, root, device, ranks)
            monitor = TrainingMonitor(**position.monitor)
            training = Training(
                root, plan, learner, identity, position, SilentJournal(), monitor, Silent(), interruption
            )
            prepare_cache(training, cache_root)
            train(training)
        except KeyboardInterrupt:
            raise _stopped(root) from None
        except RuntimeError as error:
            if not ranks.lost(error):
                raise
            raise _lost(root) from error


def open_training(
    recipe: Recipe,
    recipe_name: str,
    prepared: PreparedDataset,
    root: Path,
    progress: Progress,
    device: torch.device,
    resume: bool,
    interruption: Interruption,
    job: DistillJob | None = None,
    start: Start | None = None,
    ranks: Ranks = ALONE,
) -> Training:
    """A new training with its first state saved, or one restored from its last state."""
    if resume:
        plan, learner, identity, position = restore_training(recipe, prepared, root, device, ranks)
        progress.say(f"resuming {root.name} after {position.step:,} steps, in epoch {position.epoch + 1}")
    else:
        plan, learner, identity = begin(recipe, recipe_name, prepared, root, progress, device, start, ranks)
        position = Position(started_at=datetime.now(UTC).isoformat(timespec="seconds"))
    wanted, usable = recipe.train.precision, usable_precision(device, recipe.train.precision)
    if usable != wanted:
        progress.say(f"{device} has no {wanted} instructions, so this training runs in {usable}")
    journal = Journal(root / LOG_FILE, position.log_bytes)
    monitor = TrainingMonitor(**position.monitor)
    training = Training(root, plan, learner, identity, position, journal, monitor, progress, interruption, job)
    if not resume:
        journal.write("begin", recipe=recipe_name, dataset=prepared.name, epochs=recipe.train.epochs)
        if not ranks.alone:
            journal.write("processes", count=ranks.count)
        for report in learner.model.import_reports:
            journal.write("weights", **vars(report))
        if start is not None:
            journal.write("start", key=start.key, **start.about)
        keep_state(training)
    return training


def prepare_cache(training: Training, cache_root: Path) -> None:
    """Fill the cache of a frozen backbone, where the plan has one."""
    started_at = time.monotonic()
    fill_cache(training.plan, training.learner, cache_root, training.progress)
    training.position.elapsed_s += time.monotonic() - started_at


def train(training: Training) -> None:
    """Train and validate the remaining epochs, until the last one or until patience runs out.

    An interruption saves the state between two steps, so nothing is lost. Raises MismatchError after an epoch in which
    an image was changed; the state of an epoch before it stays.
    """
    recipe, position = training.recipe, training.position
    images = (recipe.train.epochs - position.epoch) * training.plan.pairs
    try:
        with training.progress.task("train", images, "img") as advance:
            while position.epoch < recipe.train.epochs and not _out_of_patience(training):
                train_epoch(training, advance)
                training.plan.check_files(position.epoch)
                validate_epoch(training)
                if time.monotonic() - training.state_written_at >= STATE_EVERY_S:
                    keep_state(training)
    except KeyboardInterrupt:
        keep_state(training)
        raise
    except RuntimeError as error:
        if training.ranks.lost(error):
            with suppress(KeyboardInterrupt):  # torchrun has told this process to end too
                keep_state(training)
        raise
    keep_state(training)


def train_epoch(training: Training, advance: Advance) -> None:
    """The rest of the current epoch, one optimiser step after another.

    An interruption of one of several processes ends all of them after the same step.
    """
    together = nullcontext() if training.ranks.alone else training.interruption.shielded()
    with together:
        _train_steps(training, advance)


def _train_steps(training: Training, advance: Advance) -> None:
    plan, learner, position = training.plan, training.learner, training.position
    learner.freeze_backbone_until_due(position.epoch)
    learner.model.train()
    batches = plan.loader(learner, position.epoch).epoch(position.epoch, first=position.batch)
    while True:
        if not training.ranks.alone and training.ranks.any(training.interruption.asked):
            raise KeyboardInterrupt
        started_at = time.monotonic()
        group = list(islice(batches, training.recipe.train.accumulate))
        waited_s = time.monotonic() - started_at
        if not group:
            return
        figures = accumulate(learner, group, position.epoch, position.step, with_shares=position.batch == 0)
        with training.interruption.shielded():
            share = schedule(position.step, plan.total_steps, training.recipe.optim.warmup_fraction)
            norm = update(learner, position.step, share)
            _note_step(training, figures, norm)
            position.step, position.batch = position.step + 1, position.batch + len(group)
            position.tally.add(figures, waited_s, time.monotonic() - started_at)
        advance(sum(batch.joint_pairs for batch in group))


def validate_epoch(training: Training) -> None:
    """Validate if it is due and keep the best weights; log the epoch and advance to the next."""
    plan, learner, position = training.plan, training.learner, training.position
    train_part, number = training.recipe.train, position.epoch + 1
    started_at = time.monotonic()
    due = number % train_part.validate_every_epochs == 0 or number == train_part.epochs
    found = validate(learner, plan, plan.is_cached(position.epoch)) if due else None
    tally = position.tally
    (waiting_share,) = training.ranks.greatest([tally.waiting_s / max(tally.elapsed_s, 1e-9)])
    with training.interruption.shielded():
        figures = _epoch_figures(training, waiting_share)
        images_per_s = plan.pairs / max(position.tally.elapsed_s, 1e-9)
        training.journal.write("epoch", images_per_s=images_per_s, **vars(figures))
        _report(training, training.monitor.epoch(figures))
        position.losses.append(figures.loss)
        if found is not None:
            _note_validation(training, found)
        position.elapsed_s += position.tally.elapsed_s + time.monotonic() - started_at
        position.epochs_s += position.tally.elapsed_s + time.monotonic() - started_at
        position.epoch, position.batch, position.tally = number, 0, Tally()


def finish(training: Training) -> Run:
    """Write the run with the best weights and the SMR gammas chosen for them, then delete the resume state."""
    plan, learner, position, job = training.plan, training.learner, training.position, training.job
    best = position.best
    if best is None or learner.best is None:
        raise RuntimeError("training ended without a validation")
    learner.model.load_state_dict(learner.best)
    cached = plan.is_cached(best.epoch - 1)
    learner.best |= fit_balance(learner, plan, cached)
    params = choose_gammas(learner, plan, cached)
    info = run_info(plan, learner, training.root.name, training.identity, position, best, job.key if job else "")
    training.journal.write("end", epoch=position.epoch, best_epoch=best.epoch, best_mr=best.mr)
    draw_curves(training.root, training.progress)
    seen = seen_of(plan.train, plan.selection)
    if job is not None:
        seen = replace(seen, train_images=seen.train_images | {image.image_id for image in job.images})
    files = write_files(training.root, training.recipe, learner.best, learner.tokenizer.to_json(), seen)
    if params:
        chooser = Chooser.of(files[WEIGHTS_FILE].sha256, info.selection_sha256, seen)
        write_params(training.root, chooser, params)
    run = write_info(training.root, info, files)
    remove_state(training.root)
    return run


def keep_state(training: Training) -> None:
    """Save everything that resuming needs, in one file; of several processes, the first one does."""
    if not training.ranks.first:
        return
    with training.interruption.shielded():
        training.position.log_bytes = training.journal.bytes
        training.position.monitor = training.monitor.state()
        training.position.scaler = training.learner.scaler.state_dict()
        write_state(training.root, training.identity, training.position, training.learner.tensors())
        training.state_written_at = time.monotonic()


def _note_step(training: Training, figures: StepFigures, gradient_norm: float) -> None:
    step = training.position.step + 1
    training.journal.write(
        "step",
        epoch=training.position.epoch + 1,
        step=step,
        loss=figures.loss,
        terms=figures.terms,
        lr=max(group["lr"] for group in training.learner.optimizer.param_groups),
        logit_scale=training.learner.model.logit_scale.exp().item(),
        gradient_norm=gradient_norm,
        unmatched_cosine=figures.unmatched_cosine,
    )
    _report(training, training.monitor.step(step, gradient_norm))


def _note_validation(training: Training, found: Validation) -> None:
    position = training.position
    number, loss = position.epoch + 1, sum(position.losses) / len(position.losses)
    position.losses = []
    if position.best is None or found.mr > position.best.mr:
        position.best, position.validations_since_best = BestEpoch(number, found.mr), 0
        if training.ranks.first:
            training.learner.keep_best()
    else:
        position.validations_since_best += 1
    training.journal.write("validation", epoch=number, mr=found.mr, i2t=vars(found.i2t), t2i=vars(found.t2i))
    _report(training, training.monitor.validation(found.mr, loss))
    training.progress.say(
        f"epoch {number}: loss {loss:.3f}, validation mR {found.mr:.2f} "
        f"(best {position.best.mr:.2f} in epoch {position.best.epoch})"
    )


def _epoch_figures(training: Training, waiting_share: float) -> EpochFigures:
    plan, model, tally = training.plan, training.learner.model, training.position.tally
    return EpochFigures(
        epoch=training.position.epoch + 1,
        warmed_up=training.position.step >= training.recipe.optim.warmup_fraction * plan.total_steps,
        loss=tally.loss / tally.steps,
        terms={name: value / tally.steps for name, value in tally.terms.items()},
        unmatched_cosine=tally.unmatched_cosine / tally.steps,
        logit_scale=model.logit_scale.exp().item(),
        logit_scale_max=training.recipe.losses.logit_scale_max,
        gradient_shares=tally.gradient_shares,
        gates=gates_by_stage(model),
        waiting_share=waiting_share,
    )


def _report(training: Training, warnings: list[TrainingWarning]) -> None:
    for warning in warnings:
        training.journal.write("warning", name=warning.name, sentence=warning.sentence)
        training.progress.say(f"warning: {warning.sentence}")


def _out_of_patience(training: Training) -> bool:
    patience = training.recipe.train.patience_epochs
    return 0 < patience <= training.position.validations_since_best


def _stopped(root: Path) -> InterruptedByUserError:
    if not has_state(root):
        return InterruptedByUserError(
            f"training of {root.name} was stopped before its first step", hint="start it again"
        )
    return InterruptedByUserError(
        f"training of {root.name} was stopped; its state is saved",
        hint=_how_to_resume(root),
    )


def _lost(root: Path) -> LostPeerError:
    return LostPeerError(
        f"another process of the training of {root.name} has ended, and so did this one; its state is saved",
        hint=_how_to_resume(root),
    )


def _how_to_resume(root: Path) -> str:
    return f"resume it with `cmpagl train --resume --name {root.name}`"
