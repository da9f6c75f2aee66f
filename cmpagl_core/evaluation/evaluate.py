"""From a run, a feature set or any score matrix to a RetrievalReport (section 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core import __version__
from cmpagl_core.datasets.prepared import DataSplit, PreparedDataset, open_prepared
from cmpagl_core.encoders.feature_set import FeatureSet, load_feature_set
from cmpagl_core.encoders.split_encoder import SplitEncoder
from cmpagl_core.errors import CmpaglError, DataError, MismatchError, UsageError
from cmpagl_core.evaluation.choosing import (
    ChoiceScores,
    RunScorer,
    choose_on,
    open_choice_features,
    open_choice_scores,
    params_for,
    require_other_images,
    require_other_scores,
)
from cmpagl_core.evaluation.groups import By, GroupRow, by_length, by_scene
from cmpagl_core.evaluation.protocol import (
    PROTOCOLS,
    Overlap,
    Protocol,
    Stamp,
    find_overlap,
    matches_of,
    read_overlap,
    written_overlap,
)
from cmpagl_core.evaluation.result import Queries, RetrievalReport, report_path, save_report
from cmpagl_core.evaluation.score_files import ScoresInfo, open_scores, read_scores_info, require_shape, save_scores
from cmpagl_core.evaluation.stages import Available, Base, Stage, plan_stages, score_stages
from cmpagl_core.files import sha256_file
from cmpagl_core.ranking.kept_params import read_params
from cmpagl_core.ranking.rerank import ChosenParams
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.run_data import EvalSplit, open_tested
from cmpagl_core.runs import Run, open_run
from cmpagl_core.session import Session
from cmpagl_core.workspace import Workspace


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate and report; for `rerank` see `plan_stages`."""

    protocol: Protocol = "rsitr"
    rerank: str = "default"
    itm_k: int | None = None  # None: the recipe's
    samples: int = 1000  # of the bootstrap
    seed: int = 0  # of the bootstrap


@dataclass(frozen=True)
class EvaluateRequest:
    """The input of `evaluate`: a run (the newest by default), a feature set or a score file.

    data: name of a prepared data set: for a run, to replace its own; for features, to look up scene classes; for
    scores, the data set that they belong to. choose_on: features or scores on which a file's re-ranking parameters are
    chosen. choose_split: the split of those scores. both: evaluate under both protocols.
    """

    run: str | None = None
    features: Path | None = None
    scores: Path | None = None
    data: str | None = None
    split: str = "test"
    choose_on: Path | None = None
    choose_split: str | None = None
    options: EvaluateOptions = EvaluateOptions()
    both: bool = False


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Reports, one per protocol, with the queries' scene classes [N] ("" if unknown) and captions [M].

    unsaved: why the reports on a run are not in its folder, to be raised once they have been shown.
    """

    reports: tuple[RetrievalReport, ...]
    scenes: tuple[str, ...]
    captions: tuple[str, ...]
    unsaved: CmpaglError | None = None

    @property
    def report(self) -> RetrievalReport:
        """The first report; with both protocols, that under `rsitr`."""
        return self.reports[0]

    def groups(self, by: By | None, report: RetrievalReport) -> tuple[GroupRow, ...]:
        """Every stage by scene class or by caption length. Raises DataError if no class is known."""
        queries, stages = report.queries, [row.stage for row in report.rows]
        if by == "scene":
            return tuple(group for stage in stages for group in by_scene(queries, stage, self.scenes))
        if by == "length":
            return tuple(group for stage in stages for group in by_length(queries, stage, self.captions))
        return ()


def evaluate(session: Session, request: EvaluateRequest) -> Evaluated:
    """Run an evaluation; reports on a run are saved in its folder, where that can be written.

    Raises MismatchError if features or scores do not belong to the data set's split, and the errors of opening them.
    """
    if request.features is not None:
        return _evaluate_features(session, request, request.features)
    if request.scores is not None:
        return _evaluate_scores(session, request, request.scores)
    return _evaluate_run(session, request)


@dataclass(frozen=True)
class GroundTruth:
    """The part of a split or feature set that evaluation needs: images, captions and which belong together."""

    dataset: str
    split: str
    split_sha256: str
    manifest_sha256: str
    image_ids: tuple[str, ...]
    captions: tuple[str, ...]
    caption_image: NDArray[np.int64]

    @classmethod
    def of(cls, tested: EvalSplit) -> GroundTruth:
        split = tested.split
        return cls(
            split.dataset,
            split.name,
            split.sha256,
            tested.manifest_sha256,
            split.image_ids,
            split.captions,
            split.caption_image,
        )


@dataclass(frozen=True)
class ScoredModel:
    """The model that produced the scores."""

    name: str
    sha256: str = ""
    overlap: Overlap | None = None


@dataclass(frozen=True, eq=False)
class ScoredSplit:
    """A test split with a model's scores, images x texts, for each available base."""

    tested: GroundTruth
    scores: Callable[[Base], ScoreMatrix]
    available: Available
    model: ScoredModel

    def report(self, options: EvaluateOptions) -> RetrievalReport:
        """The result under the options' protocol. Raises UsageError for options that are not available."""
        if options.samples < 1:
            raise UsageError(f"samples = {options.samples} must be at least 1")
        tested = self.tested
        stages, notes = plan_stages(options.rerank, self.available)
        matches = matches_of(options.protocol, tested.caption_image, len(tested.image_ids), tested.captions)
        rows, queries = score_stages(
            stages,
            self.scores,
            self.available,
            matches,
            Queries(tested.image_ids, tested.caption_image),
            options.samples,
            options.seed,
        )
        notes = (*notes, *self._warnings())
        return RetrievalReport(self._stamp(options.protocol, stages), rows, queries, notes)

    def _warnings(self) -> tuple[str, ...]:
        overlap = self.model.overlap
        return () if overlap is None else overlap.sentences(self.model.name)

    def _stamp(self, protocol: Protocol, stages: tuple[Stage, ...]) -> Stamp:
        tested, model, available = self.tested, self.model, self.available
        steps = {stage.name: available.steps(stage) or () for stage in stages}
        chosen = {name: tuple(step for step in found if step.chosen_on) for name, found in steps.items()}
        return Stamp(
            protocol=protocol,
            dataset=tested.dataset,
            split=tested.split,
            split_sha256=tested.split_sha256,
            manifest_sha256=tested.manifest_sha256,
            images=len(tested.image_ids),
            captions=len(tested.captions),
            model=model.name,
            model_sha256=model.sha256,
            stages=tuple(stage.name for stage in stages),
            rerank={name: found for name, found in chosen.items() if found},
            selection_sha256=available.params.split_sha256 if any(chosen.values()) else "",
            itm_k=available.itm_k if any(stage.base == "itm" for stage in stages) else None,
            overlap=model.overlap,
            code=__version__,
        )


def run_scores(
    scorer: RunScorer, tested: EvalSplit, itm_k: int | None = None, params: ChosenParams | None = None
) -> ScoredSplit:
    """A run's scores of a split: the split is encoded immediately, ITM runs on demand.

    itm_k: ITM candidates; the recipe's if None. params: of re-rankings; the run's saved ones if None. Overlap of the
    split with the run's training and selection images goes into the stamp. Raises DataError for an unreadable image.
    """
    run = scorer.run
    available = scorer.offers(read_params(run, scorer.progress) if params is None else params, itm_k)
    scores = scorer.scores(tested.split, available.itm_k)
    model = ScoredModel(run.root.name, run.info.weights_sha256, shared_with_training(run, tested.split))
    return ScoredSplit(GroundTruth.of(tested), scores, available, model)


def feature_scores(features: FeatureSet, params: ChosenParams | None = None) -> ScoredSplit:
    """Scores of any model's features. params: chosen on another split, if available.

    Raises DataError for a feature set without captions.
    """
    if not features.captions:
        raise DataError("this feature set has no captions, so there are no queries")
    info = features.info
    tested = GroundTruth(
        info.dataset,
        info.split,
        info.split_sha256,
        info.manifest_sha256,
        features.image_ids,
        features.captions,
        features.text_image,
    )
    scores = ScoreMatrix.from_features(features.image_features, features.text_features)
    model = ScoredModel(info.model, info.model_sha256, overlap=read_overlap(info.overlap))
    return ScoredSplit(tested, lambda _: scores, _cosine_only(params), model)


def matrix_scores(
    array: NDArray[Any],
    tested: EvalSplit,
    model: ScoredModel | None = None,
    params: ChosenParams | None = None,
) -> ScoredSplit:
    """Any scores of a split's images x captions, in the order of the prepared data set.

    The plain ranking's stage is called `cosine` here too. Raises MismatchError for a wrong shape, DataError for values
    that are not finite numbers.
    """
    scores, made_by = ScoreMatrix.from_array(array), model or ScoredModel("scores")
    require_shape(scores, tested.split, made_by.name)
    return ScoredSplit(GroundTruth.of(tested), lambda _: scores, _cosine_only(params), made_by)


def export_scores(session: Session, run: Run, tested: EvalSplit, out: Path) -> ScoresInfo:
    """Write a run's scores of a split before any re-ranking, images x captions, with a description beside them.

    Raises DataError for an unreadable image, CmpaglError if writing fails.
    """
    split, scorer = tested.split, RunScorer(SplitEncoder(run, session))
    available = scorer.offers(ChosenParams())
    base = available.bases[0]
    about = ScoresInfo(
        model=run.root.name,
        model_sha256=run.info.weights_sha256,
        dataset=split.dataset,
        manifest_sha256=tested.manifest_sha256,
        split=split.name,
        split_sha256=split.sha256,
        base=base,
        overlap=written_overlap(shared_with_training(run, split)),
    )
    return save_scores(out, scorer.scores(split, available.itm_k)(base), about)


def shared_with_training(run: Run, tested: DataSplit) -> Overlap | None:
    """Overlap of a split with the run's training and selection images; None if there is none."""
    return find_overlap(run.seen, run.info.dataset, tested)


def _evaluate_run(session: Session, request: EvaluateRequest) -> Evaluated:
    workspace, progress, options = session.workspace, session.progress, request.options
    run = open_run(workspace.find("runs", request.run))
    tested = open_tested(workspace, run, request.data, request.split)
    scorer = RunScorer(SplitEncoder(run, session))
    params = params_for(workspace, scorer, options.rerank, options.itm_k)
    reports = _reports(run_scores(scorer, tested, options.itm_k, params), request)
    unsaved = None
    for report in reports:
        path = report_path(run.root, request.split, report.stamp.protocol, tested.other_dataset)
        try:
            save_report(report, path, progress.say)
        except CmpaglError as error:
            unsaved = error
        else:
            progress.say(f"saved in {path}")
    return Evaluated(reports, tested.split.scenes, tested.split.captions, unsaved)


def _evaluate_features(session: Session, request: EvaluateRequest, path: Path) -> Evaluated:
    features = load_feature_set(path)
    scenes: tuple[str, ...] = ()
    if request.data is not None:
        split = _prepared(session.workspace, request).split(features.info.split)
        if split.sha256 != features.info.split_sha256:
            raise MismatchError(
                f"{path} has features of a {features.info.split} split other than that of {split.dataset}",
                hint="export the features again, or leave --data out",
            )
        # a feature set may hold the images in another order
        scene_of = dict(zip(split.image_ids, split.scenes, strict=True))
        scenes = tuple(scene_of.get(image, "") for image in features.image_ids)
    params = ChosenParams()
    if request.choose_on is not None:
        chosen = _open_choice(session.workspace, request, request.choose_on)
        require_other_images(chosen, features.image_sha256, features.info.split_sha256)
        params = choose_on(chosen, request.options.rerank, session.progress)
    return Evaluated(_reports(feature_scores(features, params), request), scenes, tuple(features.captions))


def _evaluate_scores(session: Session, request: EvaluateRequest, path: Path) -> Evaluated:
    prepared = _prepared(session.workspace, request)
    tested = prepared.split(request.split)
    array, info = open_scores(path), read_scores_info(path)
    if info is not None and info.split_sha256 != tested.sha256:
        raise MismatchError(
            f"{path} has scores of the {info.split} split of {info.dataset}, not of {tested.name} of {prepared.name}",
            hint="name its data set with --data and its split with --split",
        )
    params = ChosenParams()
    if request.choose_on is not None:
        chosen = _open_choice(session.workspace, request, request.choose_on)
        require_other_scores(chosen, array, path)
        require_other_images(chosen, tested.image_sha256, tested.sha256)
        params = choose_on(chosen, request.options.rerank, session.progress)
    overlap = None if info is None else read_overlap(info.overlap)
    model = ScoredModel(path.name, sha256_file(path), overlap)
    scored = matrix_scores(array, EvalSplit(tested, prepared.manifest.sha256), model, params)
    return Evaluated(_reports(scored, request), tested.scenes, tested.captions)


def _reports(scored: ScoredSplit, request: EvaluateRequest) -> tuple[RetrievalReport, ...]:
    protocols = PROTOCOLS if request.both else (request.options.protocol,)
    return tuple(scored.report(replace(request.options, protocol=protocol)) for protocol in protocols)


def _open_choice(workspace: Workspace, request: EvaluateRequest, path: Path) -> ChoiceScores:
    if path.suffix == ".npy":
        return open_choice_scores(path, _prepared(workspace, request), request.choose_split)
    if request.choose_split is not None:
        raise UsageError("--choose-split is for scores (.npy); feature files record their split")
    return open_choice_features(path)


def _prepared(workspace: Workspace, request: EvaluateRequest) -> PreparedDataset:
    return open_prepared(workspace.find("data", request.data))


def _cosine_only(params: ChosenParams | None) -> Available:
    """The stages of feature sets and score files: one plain ranking, called `cosine`."""
    return Available(("cosine",), ChosenParams() if params is None else params)
