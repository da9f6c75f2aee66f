"""A trial is one training and its evaluation: found by its key if already done, else run now."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from cmpagl_core.ablation.keys import EVALUATION_VERSION, Computation, training_key, trial_key
from cmpagl_core.datasets.prepared import PreparedDataset
from cmpagl_core.encoders.split_encoder import SplitEncoder
from cmpagl_core.errors import DataError, InterruptedByUserError, MismatchError
from cmpagl_core.evaluation.choosing import RunScorer, choose_missing
from cmpagl_core.evaluation.evaluate import EvaluateOptions, run_scores
from cmpagl_core.evaluation.result import RetrievalReport, load_report, save_report
from cmpagl_core.evaluation.stages import wanted_stages
from cmpagl_core.files import read_json, sha256_file, write_json
from cmpagl_core.locks import hold, sweep_lock
from cmpagl_core.progress import Progress, Silent
from cmpagl_core.ranking.kept_params import read_params
from cmpagl_core.ranking.rerank import ChosenParams
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import override_recipe
from cmpagl_core.run_data import EvalSplit, selection_of
from cmpagl_core.runs import Run, list_runs
from cmpagl_core.session import Session
from cmpagl_core.training.distill import distill_job
from cmpagl_core.training.loop import fit
from cmpagl_core.training.resume import has_state, remove_state
from cmpagl_core.training.start import distill_data
from cmpagl_core.workspace import Workspace

TRIAL_FORMAT = 2

VARIANT_RUNS = "runs/ablations"
_TRIAL_SUFFIX = ".trial.json"
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9.-]+")


@dataclass(frozen=True)
class StudySetting:
    """The workspace and data of a study. `results` has finished trials and may be copied to another machine."""

    workspace: Workspace
    prepared: PreparedDataset
    split: str
    results: Path
    device: torch.device
    progress: Progress


@dataclass(frozen=True)
class Trial:
    """A recipe with its seed, and every stage that some variant needs of it."""

    name: str
    recipe: Recipe
    stages: tuple[str, ...]

    @property
    def seed(self) -> int:
        return self.recipe.train.seed

    def computation(self, setting: StudySetting) -> Computation:
        """What its training in this setting depends on."""
        job = distill_job(self.recipe, setting.prepared, distill_data(self.recipe, setting.workspace), setting.device)
        start_key = "" if job is None else job.key
        return Computation.here(self.recipe, setting.prepared.manifest.sha256, setting.device, start_key)

    def training_key(self, setting: StudySetting) -> str:
        return training_key(self.recipe, self.computation(setting))

    def key(self, setting: StudySetting) -> str:
        return trial_key(self.recipe, self.computation(setting), setting.split)


@dataclass(frozen=True)
class TrialFacts:
    """The content of a result file besides the evaluation. Times in seconds."""

    format_version: int
    key: str
    training_key: str
    training_version: int
    evaluation_version: int
    name: str
    seed: int
    parameters: int
    elapsed_s: float
    seconds_per_epoch: float
    code: str
    device: str
    precision: str
    stages_asked: tuple[str, ...]
    recipe: dict[str, Any]
    report_sha256: str  # hash of the evaluation beside it


@dataclass(frozen=True, eq=False)
class TrialResult:
    """A finished trial."""

    facts: TrialFacts
    report: RetrievalReport

    def stage(self, wanted: str) -> str:
        """The stage, or its plain scores if its parameters could not be chosen."""
        there = {row.stage for row in self.report.rows}
        return wanted if wanted in there else wanted.partition("+")[0]


def scored(recipe: Recipe) -> Recipe:
    """The recipe whose evaluation has every stage, so that variants without re-ranking share it."""
    return override_recipe(recipe, ["evaluate.smr=true"])


def finished_result(trial: Trial, setting: StudySetting) -> TrialResult | None:
    """The saved result of a trial, if there is a readable one."""
    return saved_result(setting.results, trial.key(setting), trial.stages, setting.progress)


def saved_result(results: Path, key: str, stages: Iterable[str], progress: Progress) -> TrialResult | None:
    """The valid result under that key with these stages, if any; broken ones are reported."""
    for facts_path in sorted(results.glob(f"*-{key[:8]}{_TRIAL_SUFFIX}")):
        try:
            facts = TypeAdapter(TrialFacts).validate_python(read_json(facts_path))
            if facts.key == key and set(stages) <= set(facts.stages_asked):
                return TrialResult(facts, _checked_report(facts_path, facts))
        except (DataError, MismatchError, ValidationError) as error:
            progress.say(f"{facts_path} is recomputed: {error}")
    return None


def _checked_report(facts_path: Path, facts: TrialFacts) -> RetrievalReport:
    path = _report_of(facts_path)
    if path.is_file() and sha256_file(path) != facts.report_sha256:
        raise MismatchError(f"{path} and {facts_path.name} beside it belong to different trials")
    return load_report(path)


def trained_runs(setting: StudySetting) -> dict[str, Run]:
    """Every finished run of the workspace by its training key; the newest of duplicates."""
    found: dict[str, Run] = {}
    for folder in ("runs", VARIANT_RUNS):
        for run in list_runs(setting.workspace, setting.progress, folder):
            found.setdefault(training_key(run.recipe, Computation.of_run(run.info)), run)
    return found


def run_trial(trial: Trial, setting: StudySetting, trained: dict[str, Run]) -> TrialResult:
    """Train, unless already done, and evaluate; saves the result and adds the run to `trained`.

    While another process runs the same training, this one waits and then uses its result.
    """
    key, wait = trial.training_key(setting), setting.progress.say
    of_results, of_run = _locked(trial, setting)
    with hold(of_results, wait), hold(of_run, wait):
        known = finished_result(trial, setting)
        if known is not None:
            return known
        if key not in trained:
            trained.update(trained_runs(replace(setting, progress=Silent())))
        if key not in trained:
            trained[key] = _train(trial, setting, key)
        elif trained[key].root == of_run:
            remove_state(of_run)  # which a kill after the training's end left
        return _evaluated(trial, setting, trained[key], key)


def sweep_trial(trial: Trial, setting: StudySetting) -> None:
    """Remove the locks that a process left which was killed when the trial was done."""
    for target in _locked(trial, setting):
        sweep_lock(target)


def _locked(trial: Trial, setting: StudySetting) -> tuple[Path, Path]:
    """What a trial holds: both, since two workspaces may share results, and two results folders a workspace."""
    return setting.results / f"training-{trial.training_key(setting)[:8]}", run_folder(trial, setting)


def _evaluated(trial: Trial, setting: StudySetting, run: Run, key: str) -> TrialResult:
    report = _evaluate(trial, setting, run)
    trial_key_now = trial.key(setting)
    facts_path = setting.results / f"{_slug(trial.name)}-s{trial.seed}-{trial_key_now[:8]}{_TRIAL_SUFFIX}"
    save_report(report, _report_of(facts_path), setting.progress.say)
    facts = TrialFacts(
        format_version=TRIAL_FORMAT,
        key=trial_key_now,
        training_key=key,
        training_version=run.info.code.training_version,
        evaluation_version=EVALUATION_VERSION,
        name=trial.name,
        seed=trial.seed,
        parameters=run.info.parameters,
        elapsed_s=run.info.elapsed_s,
        seconds_per_epoch=run.info.seconds_per_epoch,
        code=" ".join(filter(None, (run.info.code.version, run.info.code.commit))),
        device=run.info.device,
        precision=run.info.precision,
        stages_asked=trial.stages,
        recipe=trial.recipe.model_dump(mode="json"),
        report_sha256=sha256_file(_report_of(facts_path)),
    )
    write_json(facts_path, asdict(facts))
    return TrialResult(facts, report)


def run_folder(trial: Trial, setting: StudySetting) -> Path:
    """Folder of a trial's run, apart from other runs, so that it never becomes the newest one."""
    key = trial.training_key(setting)
    return setting.workspace.root / VARIANT_RUNS / f"{_slug(trial.name)}-s{trial.seed}-{key[:8]}"


def _train(trial: Trial, setting: StudySetting, key: str) -> Run:
    root = run_folder(trial, setting)
    with _interrupted_here(trial):
        return fit(
            trial.recipe,
            setting.prepared,
            root,
            setting.progress,
            setting.device,
            resume=has_state(root),
            cache_root=setting.workspace.cache,
            recipe_name=trial.name,
            distill_from=distill_data(trial.recipe, setting.workspace),
        )


def _evaluate(trial: Trial, setting: StudySetting, run: Run) -> RetrievalReport:
    """Evaluate under the trial's recipe; parameters that the run chose differently or not at all are chosen now."""
    as_asked = replace(run, recipe=trial.recipe)
    session = Session(setting.workspace, setting.progress, lambda: setting.device)
    scorer = RunScorer(SplitEncoder(as_asked, session))
    selection = selection_of(setting.prepared, trial.recipe)
    wanted = ",".join(trial.stages)
    with _interrupted_here(trial):
        available = scorer.offers(_known_params(trial, run, setting.progress))
        stages = wanted_stages(wanted, available.bases)
        params = choose_missing(scorer, selection, stages, available)
        tested = EvalSplit(setting.prepared.split(setting.split), setting.prepared.manifest.sha256)
        return run_scores(scorer, tested, params=params).report(EvaluateOptions(rerank=wanted))


def _known_params(trial: Trial, run: Run, progress: Progress) -> ChosenParams:
    """The run's parameters, as far as the trial's recipe would choose them in the same way."""
    ours, theirs = trial.recipe.evaluate, run.recipe.evaluate
    same = all(getattr(ours, name) == getattr(theirs, name) for name in ("smr_form", "smr_gammas", "tta"))
    return read_params(run, progress) if same else ChosenParams(split_sha256=run.info.selection_sha256)


@contextmanager
def _interrupted_here(trial: Trial) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, InterruptedByUserError):
        raise InterruptedByUserError(
            f"stopped in {trial.name} with seed {trial.seed}, everything finished is kept",
            hint="run the same command again to continue",
        ) from None


def _report_of(facts_path: Path) -> Path:
    """Path of the evaluation beside a trial's facts."""
    return facts_path.with_name(facts_path.name.removesuffix(_TRIAL_SUFFIX) + ".json")


def _slug(name: str) -> str:
    return _NOT_IN_A_NAME.sub("-", name).strip("-.")[:80] or "variant"
