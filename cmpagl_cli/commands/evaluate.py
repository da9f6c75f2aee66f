"""`cmpagl evaluate`: recalls of a run, of anybody's features, or of anybody's score matrix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmpagl_cli.commands.options import FormatOption, OutputFormat, RunOption, Settings, settings
from cmpagl_cli.views import Column, emit, note

if TYPE_CHECKING:
    from cmpagl_core.evaluation.groups import GroupRow
    from cmpagl_core.evaluation.result import RetrievalReport
    from cmpagl_core.retrieval.rerank.chain import Tuned
    from cmpagl_core.retrieval.scores import ScoreMatrix

KEYS = ("r1", "r5", "r10")
COLUMNS = [
    Column("stage"),
    *(Column(f"{side}_{key}", f"{side} R@{key[1:]}") for side in ("i2t", "t2i") for key in KEYS),
    Column("mr", "mR"),
    Column("mr_low", "from"),
    Column("mr_high", "to (95 %)"),
    Column("ties"),
]


def evaluate(
    ctx: typer.Context,
    run: RunOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="NAME|DIR", help="Prepared data set; the run's own, or the newest, if left out."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="train, val, test, all, or selection (what the run chose on).")] = "test",
    protocol: Annotated[
        Literal["rsitr", "duplicate-aware"],
        typer.Option(help="rsitr: own captions alone are right; duplicate-aware: identical ones too."),
    ] = "rsitr",
    rerank: Annotated[
        str,
        typer.Option(metavar="STAGES", help="none, default, all, or a list such as smr,csls+smr,itm+galr."),
    ] = "default",
    itm_k: Annotated[
        int | None, typer.Option("--itm-k", min=0, metavar="K", help="ITM candidates per query; 0: no ITM stage.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Evaluate this feature set (.safetensors) in place of a run.")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Evaluate this matrix of images x captions (.npy) of --data."),
    ] = None,
    choose_on: Annotated[
        Path | None,
        typer.Option(
            "--choose-on", metavar="FILE", help="Features or scores of the val split to choose re-ranking on."
        ),
    ] = None,
    by: Annotated[
        Literal["scene", "length"] | None, typer.Option(help="Also by scene class, or by words in the caption.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of the intervals.")] = 1000,
    format: FormatOption = "table",
) -> None:
    """Evaluate a run on a split: recalls of every stage, in percent, with bounds and intervals.

    Recalls are in expectation over the orders of ties; intervals are 95 %, over query images. A run keeps what was
    found in its folder evaluations/, where `cmpagl compare` and `cmpagl report` find it.

    Examples:
      cmpagl evaluate
      cmpagl evaluate --split test --format json
      cmpagl evaluate --rerank all --by scene
      cmpagl evaluate --protocol duplicate-aware
      cmpagl evaluate --features clip.safetensors --choose-on clip-val.safetensors --rerank all
      cmpagl evaluate --scores S.npy --data ucm --split test --format json
    """
    from cmpagl_core.errors import UsageError
    from cmpagl_core.evaluation.evaluate import EvaluateOptions

    given = settings(ctx)
    options = EvaluateOptions(protocol, rerank, itm_k, samples)
    if features is not None and scores is not None:
        raise UsageError("--features and --scores cannot be evaluated at once", hint="give one of them")
    if (features or scores) and run is not None:
        raise UsageError("--run does not go with --features or --scores", hint="leave one of them out")
    if choose_on is not None and features is None and scores is None:
        raise UsageError("--choose-on is for --features and --scores", hint="a run chooses on its selection split")
    if features is not None:
        report, names = _of_features(given, features, choose_on, data, options)
    elif scores is not None:
        report, names = _of_scores(given, scores, choose_on, data, split, options)
    else:
        report, names = _of_run(given, run, data, split, options)
    show_report(report, format, _groups(report, by, names))


def show_report(report: RetrievalReport, format: OutputFormat, groups: tuple[GroupRow, ...] = ()) -> None:
    """One table of the stages, and one of the groups where there are any; notes go to stderr."""
    stamp = report.stamp
    size = f"{stamp.images:,} images, {stamp.captions:,} captions"
    title = f"{stamp.model} on {stamp.dataset} {stamp.split}, {stamp.protocol} ({size})"
    document = report.to_json()
    if groups:
        from dataclasses import asdict

        document["groups"] = [asdict(group) for group in groups]
    grouped = bool(groups) and format != "json"
    emit(_rows(report), COLUMNS, format, title, document)
    if grouped:
        columns = [Column("stage"), Column("group"), Column("images"), Column("captions"), *COLUMNS[1:8]]
        emit([_group_row(group) for group in groups], columns, format, "by group")
    for text in report.notes:
        note(text)
    if any(row.ties_matter for row in report.rows):
        note("ties: the order of equal scores decides more than 0.1 of this mR; it is the mean over all orders")


def _of_run(
    given: Settings, name: str | None, data: str | None, split: str, options: Any
) -> tuple[RetrievalReport, tuple[tuple[str, ...], tuple[str, ...]]]:
    from cmpagl_core.evaluation.evaluate import evaluate_model, tuned_of
    from cmpagl_core.evaluation.result import report_path, save_report
    from cmpagl_core.evaluation.selection import open_tested, with_temperature
    from cmpagl_core.runs import open_run

    run = open_run(given.workspace.find("runs", name))
    tested = open_tested(given.workspace, run, data, split)
    loaded = run.load(given.compute_device())
    tuned = tuned_of(run)
    if "dual" in options.rerank or options.rerank == "all":
        tuned = with_temperature(given.workspace, run, loaded, tuned, given.progress)
    report = evaluate_model(
        loaded, run, tested.split, given.progress, options, tested.manifest_sha256, tested.overlap, tuned
    )
    path = report_path(run.root, split, options.protocol, tested.other_dataset)
    save_report(report, path)
    given.progress.say(f"kept in {path}")
    return report, (tested.split.scenes, tested.split.captions)


def _of_features(
    given: Settings, path: Path, choose_on: Path | None, data: str | None, options: Any
) -> tuple[RetrievalReport, tuple[tuple[str, ...], tuple[str, ...]]]:
    from cmpagl_core.errors import MismatchError
    from cmpagl_core.evaluation.evaluate import evaluate_features
    from cmpagl_core.features.feature_set import load_feature_set

    given.compute_device()
    features = load_feature_set(path)
    scenes: tuple[str, ...] = ()
    if data is not None:
        split = _prepared(given, data)[0].split(features.info.split)
        if split.sha256 != features.info.split_sha256:
            raise MismatchError(
                f"{path} holds features of another {features.info.split} split than {split.dataset} has",
                hint="export the features again, or leave --data out",
            )
        scenes = split.scenes
    tuned = _chosen(given, choose_on, data, features.info.split_sha256)
    return evaluate_features(features, options, tuned), (scenes, features.captions)


def _of_scores(
    given: Settings, path: Path, choose_on: Path | None, data: str | None, split_name: str, options: Any
) -> tuple[RetrievalReport, tuple[tuple[str, ...], tuple[str, ...]]]:
    from cmpagl_core.evaluation.evaluate import evaluate_scores, open_scores
    from cmpagl_core.files import sha256_file

    given.compute_device()
    prepared, manifest_sha256 = _prepared(given, data)
    split = prepared.split(split_name)
    array = open_scores(path)
    tuned = _chosen(given, choose_on, data, split.sha256)
    report = evaluate_scores(array, split, options, manifest_sha256, path.name, sha256_file(path), tuned)
    return report, (split.scenes, split.captions)


def _chosen(given: Settings, path: Path | None, data: str | None, tested_sha256: str) -> Tuned:
    """Parameters chosen on a file of features or scores of another split. Raises GuardError for the tested one."""
    from cmpagl_core.errors import GuardError
    from cmpagl_core.evaluation.protocol import require_not_test
    from cmpagl_core.evaluation.tune import choose_all
    from cmpagl_core.features.feature_set import load_feature_set
    from cmpagl_core.retrieval.rerank.chain import Tuned
    from cmpagl_core.retrieval.scores import ScoreMatrix

    if path is None:
        return Tuned()
    if path.suffix == ".npy":
        scores, owners, chosen_sha256 = _validation_scores(given, path, data)
    else:
        features = load_feature_set(path)
        require_not_test(features.info.split, "re-rankings")
        scores = ScoreMatrix.from_features(features.image_features, features.text_features)
        owners, chosen_sha256 = features.text_image, features.info.split_sha256
    if chosen_sha256 and chosen_sha256 == tested_sha256:
        raise GuardError(
            f"{path} is of the very split that is evaluated, so choosing on it would flatter every re-ranking",
            hint="give features or scores of the val split",
        )
    return choose_all(scores, owners, progress=given.progress)


def _validation_scores(given: Settings, path: Path, data: str | None) -> tuple[ScoreMatrix, Any, str]:
    from cmpagl_core.evaluation.evaluate import open_scores, require_shape
    from cmpagl_core.retrieval.scores import ScoreMatrix

    split = _prepared(given, data)[0].split("val")
    scores = ScoreMatrix.from_array(open_scores(path))
    require_shape(scores, split, str(path))
    return scores, split.caption_image, split.sha256


def _prepared(given: Settings, data: str | None) -> tuple[Any, str]:
    from cmpagl_core.datasets.prepared import open_prepared

    prepared = open_prepared(given.workspace.find("data", data))
    return prepared, prepared.manifest.sha256


def _groups(
    report: RetrievalReport,
    by: Literal["scene", "length"] | None,
    names: tuple[tuple[str, ...], tuple[str, ...]],
) -> tuple[GroupRow, ...]:
    from cmpagl_core.evaluation.groups import by_length, by_scene

    scenes, captions = names
    stages = [row.stage for row in report.rows]
    if by == "scene":
        return tuple(group for stage in stages for group in by_scene(report.queries, stage, scenes))
    if by == "length":
        return tuple(group for stage in stages for group in by_length(report.queries, stage, captions))
    return ()


def _rows(report: RetrievalReport) -> list[dict[str, Any]]:
    return [
        {
            "stage": row.stage,
            **{f"i2t_{key}": getattr(row.i2t, key) for key in KEYS},
            **{f"t2i_{key}": getattr(row.t2i, key) for key in KEYS},
            "mr": row.mr,
            "mr_low": row.ci95.mr[0],
            "mr_high": row.ci95.mr[1],
            "ties": f"{row.bounds.mr[0]:.2f} to {row.bounds.mr[1]:.2f}" if row.ties_matter else "",
        }
        for row in report.rows
    ]


def _group_row(group: GroupRow) -> dict[str, Any]:
    sides = {"i2t": group.i2t, "t2i": group.t2i}
    return {
        "stage": group.stage,
        "group": group.group,
        "images": group.images,
        "captions": group.captions,
        **{f"{side}_{key}": getattr(found, key, None) for side, found in sides.items() for key in KEYS},
        "mr": group.mr,
    }
