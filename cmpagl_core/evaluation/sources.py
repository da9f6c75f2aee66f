"""Everything that can be evaluated by its name or its file: runs, feature sets, anybody's score matrices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cmpagl_core.datasets.prepared import PreparedDataset, open_prepared
from cmpagl_core.encoders.feature_set import load_feature_set
from cmpagl_core.errors import MismatchError, UsageError
from cmpagl_core.evaluation.choose_on import (
    ChoiceScores,
    choose_on,
    open_choice_features,
    open_choice_scores,
    require_other_images,
    require_other_scores,
)
from cmpagl_core.evaluation.evaluate import feature_scores, matrix_scores, model_scores
from cmpagl_core.evaluation.groups import By, GroupRow, by_length, by_scene
from cmpagl_core.evaluation.protocol import PROTOCOLS, read_overlap
from cmpagl_core.evaluation.result import RetrievalReport, report_path, save_report
from cmpagl_core.evaluation.score_files import open_scores, read_scores_info
from cmpagl_core.evaluation.scored import EvaluateOptions, Scored
from cmpagl_core.evaluation.selection import open_tested, params_for
from cmpagl_core.files import sha256_file
from cmpagl_core.progress import Progress
from cmpagl_core.ranking.chain import ChosenParams
from cmpagl_core.runs import open_run
from cmpagl_core.workspace import Workspace


@dataclass(frozen=True)
class ChoiceFile:
    """What re-rankings of a file are chosen on: features or scores, and which split scores are of."""

    path: Path | None = None
    split: str | None = None


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Reports, one a protocol, and what their queries are about (scenes [N], "" where unknown; captions [M])."""

    reports: tuple[RetrievalReport, ...]
    scenes: tuple[str, ...]
    captions: tuple[str, ...]

    @property
    def report(self) -> RetrievalReport:
        """The first one: under `rsitr` where both protocols were asked for."""
        return self.reports[0]

    def groups(self, by: By | None, report: RetrievalReport) -> tuple[GroupRow, ...]:
        """Every stage by scene class or by length of the caption. Raises DataError where no class is known."""
        queries, stages = report.queries, [row.stage for row in report.rows]
        if by == "scene":
            return tuple(group for stage in stages for group in by_scene(queries, stage, self.scenes))
        if by == "length":
            return tuple(group for stage in stages for group in by_length(queries, stage, self.captions))
        return ()


def evaluate_named_run(
    workspace: Workspace,
    name: str | None,
    data: str | None,
    split: str,
    options: EvaluateOptions,
    progress: Progress,
    device: torch.device,
    both: bool = False,
) -> Evaluated:
    """Evaluate a run (the newest if None) and keep the report in its folder. both: under every protocol."""
    run = open_run(workspace.find("runs", name))
    tested = open_tested(workspace, run, data, split)
    loaded = run.load(device)
    params = params_for(workspace, run, loaded, options.rerank, options.itm_k, progress)
    scored = model_scores(loaded, run, tested.split, progress, options, tested.manifest_sha256, params)
    reports = _reports(scored, options, both)
    for report in reports:
        path = report_path(run.root, split, report.stamp.protocol, tested.other_dataset)
        save_report(report, path, progress.say)
        progress.say(f"kept in {path}")
    return Evaluated(reports, tested.split.scenes, tested.split.captions)


def evaluate_feature_file(
    workspace: Workspace,
    path: Path,
    choice: ChoiceFile,
    data: str | None,
    options: EvaluateOptions,
    progress: Progress,
    both: bool = False,
) -> Evaluated:
    """Evaluate a feature set. data: prepared data set that it must be of, for its scenes. both: every protocol.

    Raises MismatchError when the features are of another split than the data set's.
    """
    features = load_feature_set(path)
    scenes: tuple[str, ...] = ()
    if data is not None:
        split = _prepared(workspace, data).split(features.info.split)
        if split.sha256 != features.info.split_sha256:
            raise MismatchError(
                f"{path} holds features of another {features.info.split} split than {split.dataset} has",
                hint="export the features again, or leave --data out",
            )
        # a feature set may hold the images in another order
        scene_of = dict(zip(split.image_ids, split.scenes, strict=True))
        scenes = tuple(scene_of.get(image, "") for image in features.image_ids)
    params = ChosenParams()
    if choice.path is not None:
        chosen = _open_choice(workspace, choice, choice.path, data)
        require_other_images(chosen, features.image_sha256, features.info.split_sha256)
        params = choose_on(chosen, options.rerank, progress)
    return Evaluated(_reports(feature_scores(features, params), options, both), scenes, tuple(features.captions))


def evaluate_score_file(
    workspace: Workspace,
    path: Path,
    choice: ChoiceFile,
    data: str | None,
    split: str,
    options: EvaluateOptions,
    progress: Progress,
    both: bool = False,
) -> Evaluated:
    """Evaluate a `.npy` matrix of a split's images x captions, in the prepared set's order. both: every protocol."""
    prepared = _prepared(workspace, data)
    tested = prepared.split(split)
    array, info = open_scores(path), read_scores_info(path)
    if info is not None and info.split_sha256 != tested.sha256:
        raise MismatchError(
            f"{path} holds scores of the {info.split} split of {info.dataset}, not of {split} of {prepared.name}",
            hint="name its data set with --data and its split with --split",
        )
    params = ChosenParams()
    if choice.path is not None:
        chosen = _open_choice(workspace, choice, choice.path, data)
        require_other_scores(chosen, array, path)
        require_other_images(chosen, tested.picture_sha256, tested.sha256)
        params = choose_on(chosen, options.rerank, progress)
    overlap = None if info is None else read_overlap(info.overlap)
    digest = sha256_file(path)
    scored = matrix_scores(array, tested, prepared.manifest.sha256, path.name, digest, params, overlap)
    return Evaluated(_reports(scored, options, both), tested.scenes, tested.captions)


def _reports(scored: Scored, options: EvaluateOptions, both: bool) -> tuple[RetrievalReport, ...]:
    protocols = PROTOCOLS if both else (options.protocol,)
    return tuple(scored.report(replace(options, protocol=protocol)) for protocol in protocols)


def _open_choice(workspace: Workspace, choice: ChoiceFile, path: Path, data: str | None) -> ChoiceScores:
    if path.suffix == ".npy":
        return open_choice_scores(path, _prepared(workspace, data), choice.split)
    if choice.split is not None:
        raise UsageError("--choose-split is for scores (.npy): features say which split they are of")
    return open_choice_features(path)


def _prepared(workspace: Workspace, data: str | None) -> PreparedDataset:
    return open_prepared(workspace.find("data", data))
