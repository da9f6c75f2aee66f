"""`cmpagl evaluate`: recalls of a run, of anybody's features, or of anybody's score matrix."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmpagl_cli.commands.options import FormatOption, OutputFormat, RunOption, settings
from cmpagl_cli.views import Column, emit, note

if TYPE_CHECKING:
    from cmpagl_core.evaluation.groups import GroupRow
    from cmpagl_core.evaluation.result import RetrievalReport

KEYS = ("r1", "r5", "r10")
RECALLS = [Column(f"{side}_{key}", f"{side} R@{key[1:]}") for side in ("i2t", "t2i") for key in KEYS]
COLUMNS = [
    Column("stage"),
    *RECALLS,
    Column("mr", "mR"),
    Column("mr_low", "from"),
    Column("mr_high", "to (95 %)"),
    Column("ties"),
]
GROUP_COLUMNS = [
    Column("stage"),
    Column("group"),
    Column("images"),
    Column("captions"),
    *RECALLS,
    Column("mr", "mR"),
]

TestedDataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="NAME|DIR", help="Prepared data set; the run's own, or the newest, if left out."),
]
SplitOption = Annotated[
    str, typer.Option("--split", help="train, val, test, all, or selection (what the run chose on).")
]
ProtocolOption = Annotated[
    Literal["rsitr", "duplicate-aware"],
    typer.Option("--protocol", help="rsitr: own captions alone are right; duplicate-aware: identical ones too."),
]
RerankOption = Annotated[
    str,
    typer.Option("--rerank", metavar="STAGES", help="none, default, all, or a list such as smr,csls+smr,itm+galr."),
]
ItmKOption = Annotated[
    int | None, typer.Option("--itm-k", min=0, metavar="K", help="ITM candidates per query; 0: no ITM stage.")
]
FeaturesOption = Annotated[
    Path | None,
    typer.Option("--features", metavar="FILE", help="Evaluate this feature set (.safetensors) in place of a run."),
]
ScoresOption = Annotated[
    Path | None,
    typer.Option("--scores", metavar="FILE", help="Evaluate this matrix of images x captions (.npy) of --data."),
]
ChooseOnOption = Annotated[
    Path | None,
    typer.Option("--choose-on", metavar="FILE", help="Features or scores of the val split to choose re-ranking on."),
]
ByOption = Annotated[
    Literal["scene", "length"] | None, typer.Option("--by", help="Also by scene class, or by words in the caption.")
]
SamplesOption = Annotated[int, typer.Option("--samples", min=1, help="Bootstrap resamples of the intervals.")]


def evaluate(
    ctx: typer.Context,
    run: RunOption = None,
    data: TestedDataOption = None,
    split: SplitOption = "test",
    protocol: ProtocolOption = "rsitr",
    rerank: RerankOption = "default",
    itm_k: ItmKOption = None,
    features: FeaturesOption = None,
    scores: ScoresOption = None,
    choose_on: ChooseOnOption = None,
    by: ByOption = None,
    samples: SamplesOption = 1000,
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
    from cmpagl_core.evaluation import sources
    from cmpagl_core.evaluation.evaluate import EvaluateOptions

    _refuse_contradictions(run, features, scores, choose_on)
    given = settings(ctx)
    device, place, progress = given.compute_device(), given.workspace, given.progress
    options = EvaluateOptions(protocol, rerank, itm_k, samples)
    if features is not None:
        found = sources.evaluate_feature_file(place, features, choose_on, data, options, progress)
    elif scores is not None:
        found = sources.evaluate_score_file(place, scores, choose_on, data, split, options, progress)
    else:
        found = sources.evaluate_named_run(place, run, data, split, options, progress, device)
    show_report(found.report, format, found.groups(by))


def show_report(report: RetrievalReport, format: OutputFormat, groups: tuple[GroupRow, ...] = ()) -> None:
    """One table of the stages, and one of the groups where there are any; notes go to stderr."""
    stamp = report.stamp
    size = f"{stamp.images:,} images, {stamp.captions:,} captions"
    title = f"{stamp.model} on {stamp.dataset} {stamp.split}, {stamp.protocol} ({size})"
    document = report.to_json()
    if groups:
        document["groups"] = [asdict(group) for group in groups]
    emit(_rows(report), COLUMNS, format, title, document)
    if groups and format != "json":
        emit([_group_row(group) for group in groups], GROUP_COLUMNS, format, "by group")
    for text in report.notes:
        note(text)
    if any(row.ties_matter for row in report.rows):
        note("ties: the order of equal scores decides more than 0.1 of this mR; it is the mean over all orders")


def _refuse_contradictions(run: str | None, features: Path | None, scores: Path | None, choose_on: Path | None) -> None:
    from cmpagl_core.errors import UsageError

    if features is not None and scores is not None:
        raise UsageError("--features and --scores cannot be evaluated at once", hint="give one of them")
    foreign = features is not None or scores is not None
    if foreign and run is not None:
        raise UsageError("--run does not go with --features or --scores", hint="leave one of them out")
    if choose_on is not None and not foreign:
        raise UsageError("--choose-on is for --features and --scores", hint="a run chooses on its selection split")


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
