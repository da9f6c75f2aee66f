"""Everything that can be evaluated by its name or its file: runs, feature sets, anybody's score matrices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from cmpagl_core.datasets.prepared import DataSplit, PreparedDataset, open_prepared
from cmpagl_core.encoders.feature_set import load_feature_set
from cmpagl_core.errors import GuardError, MismatchError
from cmpagl_core.evaluation.evaluate import (
    feature_scores,
    matrix_scores,
    model_scores,
    open_scores,
    require_shape,
    tuned_of,
)
from cmpagl_core.evaluation.groups import By, GroupRow, by_length, by_scene
from cmpagl_core.evaluation.protocol import PROTOCOLS, require_not_test
from cmpagl_core.evaluation.result import RetrievalReport, report_path, save_report
from cmpagl_core.evaluation.scored import EvaluateOptions, Scored
from cmpagl_core.evaluation.selection import open_tested, with_temperatures
from cmpagl_core.evaluation.tune import choose_all
from cmpagl_core.files import sha256_file
from cmpagl_core.progress import Progress
from cmpagl_core.ranking.chain import TEMPERED, Tuned
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.runs import open_run
from cmpagl_core.workspace import Workspace


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
    tuned = tuned_of(run)
    wanted = options.rerank.replace("-", "_")
    if wanted == "all" or any(name in wanted for name in TEMPERED):
        tuned = with_temperatures(workspace, run, loaded, tuned, progress)
    scored = model_scores(loaded, run, tested.split, progress, options, tested.manifest_sha256, tested.overlap, tuned)
    reports = _reports(scored, options, both)
    for report in reports:
        path = report_path(run.root, split, report.stamp.protocol, tested.other_dataset)
        save_report(report, path)
        progress.say(f"kept in {path}")
    return Evaluated(reports, tested.split.scenes, tested.split.captions)


def evaluate_feature_file(
    workspace: Workspace,
    path: Path,
    choose_on: Path | None,
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
    tuned = _chosen(workspace, choose_on, data, features.info.split_sha256, progress)
    return Evaluated(_reports(feature_scores(features, tuned), options, both), scenes, tuple(features.captions))


def evaluate_score_file(
    workspace: Workspace,
    path: Path,
    choose_on: Path | None,
    data: str | None,
    split: str,
    options: EvaluateOptions,
    progress: Progress,
    both: bool = False,
) -> Evaluated:
    """Evaluate a `.npy` matrix of a split's images x captions, in the prepared set's order. both: every protocol."""
    prepared = _prepared(workspace, data)
    tested = prepared.split(split)
    array = open_scores(path)
    tuned = _chosen(workspace, choose_on, data, tested.sha256, progress)
    scored = matrix_scores(array, tested, prepared.manifest.sha256, path.name, sha256_file(path), tuned)
    return Evaluated(_reports(scored, options, both), tested.scenes, tested.captions)


def _reports(scored: Scored, options: EvaluateOptions, both: bool) -> tuple[RetrievalReport, ...]:
    protocols = PROTOCOLS if both else (options.protocol,)
    return tuple(scored.report(replace(options, protocol=protocol)) for protocol in protocols)


def _chosen(workspace: Workspace, path: Path | None, data: str | None, tested_sha256: str, progress: Progress) -> Tuned:
    """Parameters chosen on features or scores of another split. Raises GuardError for the tested one."""
    if path is None:
        return Tuned()
    scores, owners, chosen_sha256 = (
        _validation_scores(_prepared(workspace, data).split("val"), path)
        if path.suffix == ".npy"
        else _validation_features(path)
    )
    if chosen_sha256 and chosen_sha256 == tested_sha256:
        raise GuardError(
            f"{path} is of the very split that is evaluated, so choosing on it would flatter every re-ranking",
            hint="give features or scores of the val split",
        )
    return choose_all(scores, owners, progress=progress)


def _validation_scores(split: DataSplit, path: Path) -> tuple[ScoreMatrix, NDArray[Any], str]:
    scores = ScoreMatrix.from_array(open_scores(path))
    require_shape(scores, split, str(path))
    return scores, split.caption_image, split.sha256


def _validation_features(path: Path) -> tuple[ScoreMatrix, NDArray[Any], str]:
    features = load_feature_set(path)
    require_not_test(features.info.split, "re-rankings")
    scores = ScoreMatrix.from_features(features.image_features, features.text_features)
    return scores, features.text_image, features.info.split_sha256


def _prepared(workspace: Workspace, data: str | None) -> PreparedDataset:
    return open_prepared(workspace.find("data", data))
