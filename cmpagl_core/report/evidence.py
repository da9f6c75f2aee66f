"""The contents of a report page for one run: evaluation, scenes, worst queries and learning curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.encoders.feature_set import FeatureSet
from cmpagl_core.encoders.split_encoder import SplitEncoder
from cmpagl_core.errors import DataError, MismatchError
from cmpagl_core.evaluation.choosing import RunScorer
from cmpagl_core.evaluation.evaluate import EvaluateOptions, run_scores
from cmpagl_core.evaluation.groups import GroupRow, by_scene
from cmpagl_core.evaluation.protocol import Protocol
from cmpagl_core.evaluation.result import RetrievalReport, load_report, report_path, save_report
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.progress import Progress
from cmpagl_core.ranking.kept_params import read_params
from cmpagl_core.recipe import Recipe
from cmpagl_core.run_data import EvalSplit, open_tested
from cmpagl_core.runs import Run
from cmpagl_core.session import Session
from cmpagl_core.training.journal import read_journal

Point = tuple[float, float]

_WORST_TEXTS = 12
_WORST_IMAGES = 6
_FOUND = 3
_DRAWN = 1e9  # larger values are not drawn


@dataclass(frozen=True)
class WorstText:
    """A caption whose image ranks low: its rank before any re-ranking, and the images ranked first instead."""

    caption: str
    rank: float
    own: ImageRef
    found: tuple[ImageRef, ...]


@dataclass(frozen=True)
class WorstImage:
    """An image whose captions rank low, and the captions ranked first instead."""

    own: ImageRef
    rank: float
    captions: tuple[str, ...]
    found: tuple[str, ...]


@dataclass(frozen=True)
class Curves:
    """Points of (epoch, value) from the run's log, and the warnings of the training."""

    loss: tuple[Point, ...]
    mr: tuple[Point, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that the page shows of one run."""

    name: str
    run: Run
    report: RetrievalReport
    curves: Curves
    scenes: tuple[GroupRow, ...]
    worst_texts: tuple[WorstText, ...]
    worst_images: tuple[WorstImage, ...]


def collect(session: Session, run: Run, data: str | None, split: str, protocol: Protocol, again: bool) -> Evidence:
    """Everything for one run: its saved evaluation, or a new one if that is missing, out of date or if `again`.

    data: name or path of a data set; the run's own if None. Raises DataError, MismatchError.
    """
    tested, progress = open_tested(session.workspace, run, data, split), session.progress
    encoder = SplitEncoder(run, session)
    path = report_path(run.root, split, protocol, tested.other_dataset)
    report = None if again else _kept(path, run, tested, progress)
    if report is None:
        report = run_scores(RunScorer(encoder), tested).report(EvaluateOptions(protocol))
        save_report(report, path, progress.say)
    features = encoder.features(tested.split) if run.recipe.losses.aligns_features else None
    return gather(run, report, tested.split, features)


def _kept(path: Path, run: Run, tested: EvalSplit, progress: Progress) -> RetrievalReport | None:
    """The evaluation in a run's folder, if it matches these weights, re-ranking parameters and data."""
    if not path.is_file():
        return None
    try:
        report = load_report(path)
    except (DataError, MismatchError) as error:
        progress.say(f"evaluated again: {error}")
        return None
    stamp, split, params = report.stamp, tested.split, read_params(run, progress)
    data = (stamp.split_sha256, stamp.manifest_sha256) == (split.sha256, tested.manifest_sha256)
    chosen = all(params.holds(step) for steps in stamp.rerank.values() for step in steps)
    current = data and chosen and stamp.model_sha256 == run.info.weights_sha256
    return report if current and report.queries.image_ids == split.image_ids else None


def gather(run: Run, report: RetrievalReport, split: DataSplit, features: FeatureSet | None) -> Evidence:
    """Everything for one run. features: of the same split, to show what was found instead; optional.

    Raises DataError if the evaluation or the features are not of this split.
    """
    if report.queries.image_ids != split.image_ids:
        raise DataError(
            f"the evaluation of {run.root.name} is not of the present {split.name} split of {split.dataset}",
            hint="evaluate again",
        )
    stage = report.first.stage  # the plain ranking: the best one would be chosen on the split that is shown
    hits = report.queries.stages[stage]
    return Evidence(
        name=run.root.name,
        run=run,
        report=report,
        curves=read_curves(run.log_path),
        scenes=by_scene(report.queries, stage, split.scenes) if any(split.scenes) else (),
        worst_texts=worst_texts(split, hits.t2i_rank, features),
        worst_images=worst_images(split, hits.i2t_rank, features),
    )


def worst_texts(split: DataSplit, rank: NDArray[np.float64], features: FeatureSet | None) -> tuple[WorstText, ...]:
    """The captions whose own image ranks lowest, each image and caption text once. rank [M], from 1."""
    chosen: list[int] = []
    seen: set[object] = set()
    for row in _latest_first(rank):
        owner = int(split.caption_image[row])
        if owner not in seen and split.captions[row] not in seen:
            chosen.append(row)
            seen |= {owner, split.captions[row]}
        if len(chosen) == _WORST_TEXTS:
            break
    return tuple(
        WorstText(
            split.captions[row],
            float(rank[row]),
            split.images[int(split.caption_image[row])],
            tuple(split.images[image] for image in _first_images(features, row)),
        )
        for row in chosen
    )


def worst_images(split: DataSplit, rank: NDArray[np.float64], features: FeatureSet | None) -> tuple[WorstImage, ...]:
    """The images whose best own caption ranks lowest. rank [N], from 1, NaN without captions."""
    return tuple(
        WorstImage(
            split.images[row],
            float(rank[row]),
            tuple(dict.fromkeys(split.captions[caption] for caption in split.captions_of(row))),
            _first_captions(split, features, row),
        )
        for row in _latest_first(rank)[:_WORST_IMAGES]
    )


def read_curves(log: Path) -> Curves:
    """Loss and validation mR by epoch; empty for a missing or broken log, which the page does not need."""
    loss: list[Point] = []
    mr: list[Point] = []
    warnings: list[str] = []
    try:
        for event in read_journal(log):
            if event["event"] == "epoch":
                loss += _point(event, "loss")
            elif event["event"] == "validation":
                mr += _point(event, "mr")
            elif event["event"] == "warning":
                warnings.append(str(event.get("sentence", "")))
    except DataError as error:
        warnings.append(str(error))
    return Curves(tuple(loss), tuple(mr), tuple(warnings))


def recipe_differences(recipes: Sequence[Recipe]) -> list[tuple[str, list[str]]]:
    """Fields that differ between recipes: path, and each recipe's value."""
    flat = [dict(_flat(recipe.model_dump(mode="json"))) for recipe in recipes]
    paths = dict.fromkeys(path for fields in flat for path in fields)
    values = {path: [str(fields.get(path, "")) for fields in flat] for path in paths}
    return [(path, shown) for path, shown in values.items() if len(set(shown)) > 1]


def _flat(tree: dict[str, Any], path: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _point(event: dict[str, Any], key: str) -> list[Point]:
    epoch, value = event.get("epoch"), event.get(key)
    if not (isinstance(epoch, int | float) and isinstance(value, int | float)):
        return []
    return [(float(epoch), float(value))] if 0 <= epoch <= _DRAWN and abs(value) <= _DRAWN else []


def _latest_first(rank: NDArray[np.float64]) -> list[int]:
    known = np.flatnonzero(np.isfinite(rank))
    return [int(row) for row in known[np.argsort(-rank[known], kind="stable")]]


def _first_images(features: FeatureSet | None, caption: int) -> list[int]:
    if features is None:
        return []
    scores = features.image_features @ features.text_features[caption]
    return [int(row) for row in np.argsort(-scores, kind="stable")[:_FOUND]]


def _first_captions(split: DataSplit, features: FeatureSet | None, image: int) -> tuple[str, ...]:
    if features is None:
        return ()
    scores = features.text_features @ features.image_features[image]
    first = (split.captions[int(row)] for row in np.argsort(-scores, kind="stable")[: 10 * _FOUND])
    return tuple(dict.fromkeys(first))[:_FOUND]
