"""A study of variants and seeds: what is already finished, how long the rest takes, and running it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from cmpagl_core.ablation.table import AblationTable, build_table
from cmpagl_core.ablation.trials import (
    StudySetting,
    Trial,
    TrialResult,
    finished_result,
    run_trial,
    scored,
    sweep_trial,
    trained_runs,
)
from cmpagl_core.ablation.variants import Variant, bases_of
from cmpagl_core.evaluation.stages import Base
from cmpagl_core.recipe_files import override_recipe
from cmpagl_core.runs import Run

Todo = Literal["nothing", "evaluate", "train"]


@dataclass(frozen=True)
class Step:
    """One variant with one seed, and its remaining work."""

    variant: Variant
    trial: Trial
    todo: Todo


@dataclass(frozen=True)
class StudyForecast:
    """What a study will do and how long its trainings take; None if there is nothing to estimate from."""

    steps: tuple[Step, ...]
    trainings: int
    evaluations: int
    seconds_per_training: float | None

    @property
    def total_s(self) -> float | None:
        return None if self.seconds_per_training is None else self.trainings * self.seconds_per_training


def forecast(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    setting: StudySetting,
    measured: Callable[[], float] | None = None,
) -> StudyForecast:
    """Seed by seed, so that an interrupted study has complete rounds. Equal trainings and evaluations are shared.

    The time of a training is the median of this study's finished ones; if there are none, `measured` is called.
    """
    trained = trained_runs(setting)
    planned: dict[str, Todo] = {}
    trainings: set[str] = set()
    known_s: list[float] = []
    steps = []
    for trial, variant in _trials(variants, seeds):
        key = trial.training_key(setting)
        name = trial.recipe.sha256()
        if name in planned:
            steps.append(Step(variant, trial, "nothing"))
            continue
        result = finished_result(trial, setting)
        if result is not None:
            todo: Todo = "nothing"
            known_s.append(result.facts.elapsed_s)
        elif key in trained or key in trainings:
            todo = "evaluate"
            known_s += [trained[key].info.elapsed_s] if key in trained else []
        else:
            todo = "train"
            trainings.add(key)
        planned[name] = todo
        steps.append(Step(variant, trial, todo))
    done = list(planned.values())
    each = median(known_s) if known_s else None
    if each is None and trainings and measured is not None:
        each = measured()
    return StudyForecast(tuple(steps), done.count("train"), len(done) - done.count("nothing"), each)


def run_study(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    setting: StudySetting,
    base: Base | None = None,
    notes: Sequence[str] = (),
) -> AblationTable:
    """Run what is left, and compare. base: compare by these plain scores instead of each variant's last ones.

    Raises InterruptedByUserError if stopped: finished work is kept, and an unfinished training can be resumed.
    """
    trained: dict[str, Run] = trained_runs(setting)
    done: dict[str, TrialResult] = {}
    results: dict[str, list[TrialResult]] = {variant.name: [] for variant in variants}
    trials = list(_trials(variants, seeds))
    for place, (trial, variant) in enumerate(trials, start=1):
        name = trial.recipe.sha256()
        if name not in done:
            known = finished_result(trial, setting)
            if known is None:
                setting.progress.say(f"{place} of {len(trials)}: {trial.name}, seed {trial.seed}")
            else:
                sweep_trial(trial, setting)
            done[name] = known or run_trial(trial, setting, trained)
        results[variant.name].append(done[name])
    return build_table(variants, results, base, notes)


def _trials(variants: Sequence[Variant], seeds: Sequence[int]) -> list[tuple[Trial, Variant]]:
    """One trial per variant and seed; variants that differ only in re-ranking share one."""
    pairs = []
    for seed in seeds:
        recipes = [scored(override_recipe(variant.recipe, [f"train.seed={seed}"])) for variant in variants]
        for recipe, variant in zip(recipes, variants, strict=True):
            sharing = [other for other, its in zip(variants, recipes, strict=True) if its == recipe]
            wanted = [stage for base in bases_of(recipe) for stage in (base, f"{base}+smr")]
            wanted += [other.stage(base) for other in sharing for base in (None, *bases_of(recipe))]
            pairs.append((Trial(sharing[0].name, recipe, tuple(dict.fromkeys(wanted))), variant))
    return pairs
