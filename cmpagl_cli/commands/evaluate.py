"""`cmpagl evaluate`: recalls of a run, of any feature set, or of any score matrix."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmpagl_cli.commands.options import FormatOption, OutputFormat, RunOption, TestedDataOption, settings
from cmpagl_cli.views import Column, clean, echo, emit, note

if TYPE_CHECKING:
    from cmpagl_core.evaluation.evaluate import Evaluated
    from cmpagl_core.evaluation.groups import GroupRow
    from cmpagl_core.evaluation.result import ReportRow, RetrievalReport

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
RANKS = [
    Column(f"{side}_{key}", f"{side} {head}")
    for side in ("i2t", "t2i")
    for key, head in (("mrr", "MRR"), ("median_rank", "median rank"), ("ndcg10", "nDCG@10"), ("map", "mAP"))
]
GROUP_COLUMNS = [
    Column("stage"),
    Column("group"),
    Column("images"),
    Column("captions"),
    *RECALLS,
    Column("mr", "mR"),
]

SplitOption = Annotated[
    str, typer.Option("--split", help="train, val, test, all, or selection (the split on which the run was chosen).")
]
ProtocolOption = Annotated[
    Literal["rsitr", "duplicate-aware", "both"],
    typer.Option(
        "--protocol", help="rsitr: only an image's own captions match; duplicate-aware: identical captions do too."
    ),
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
    typer.Option("--features", metavar="FILE", help="Evaluate this feature set (.safetensors) instead of a run."),
]
ScoresOption = Annotated[
    Path | None,
    typer.Option("--scores", metavar="FILE", help="Evaluate this matrix of images x captions (.npy) of --data."),
]
ChooseOnOption = Annotated[
    Path | None,
    typer.Option(
        "--choose-on", metavar="FILE", help="Features or scores of the val split, to choose re-ranking parameters."
    ),
]
ChooseSplitOption = Annotated[
    str | None,
    typer.Option("--choose-split", help="Split of a --choose-on .npy that `export --scores` did not write."),
]
ByOption = Annotated[
    Literal["scene", "length"] | None,
    typer.Option("--by", help="Also by scene class, or by number of words in the caption."),
]
RanksOption = Annotated[
    bool, typer.Option("--ranks", help="Also MRR, median rank, nDCG@10 and mAP; csv, json and jsonl always have them.")
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
    choose_split: ChooseSplitOption = None,
    by: ByOption = None,
    ranks: RanksOption = False,
    samples: SamplesOption = 1000,
    format: FormatOption = "table",
) -> None:
    """Evaluate a run on a split: recalls of every stage, in percent, with bounds and intervals.

    Recalls are expectations over the order of ties; intervals are 95 %, over query images. Results are saved in the
    run's folder evaluations/ for `cmpagl compare` and `cmpagl report`. With --protocol both, each protocol has its
    own table, and JSON has the second one under "duplicate_aware".

    Examples:
      cmpagl evaluate
      cmpagl evaluate --split test --format json
      cmpagl evaluate --rerank all --by scene --ranks
      cmpagl evaluate --protocol both --format json
      cmpagl evaluate --features clip.safetensors --choose-on clip-val.safetensors --rerank all
      cmpagl evaluate --scores S.npy --data ucm --split test --format json
      cmpagl evaluate --scores S.npy --data ucm --choose-on V.npy --choose-split val --rerank all
    """
    from cmpagl_core.evaluation.evaluate import EvaluateOptions, EvaluateRequest
    from cmpagl_core.evaluation.evaluate import evaluate as evaluate_request

    _refuse_contradictions(run, features, scores, choose_on, choose_split)
    _refuse_mixing(protocol, format)
    given = settings(ctx)
    request = EvaluateRequest(
        run,
        features,
        scores,
        data,
        split,
        choose_on,
        choose_split,
        EvaluateOptions("rsitr" if protocol == "both" else protocol, rerank, itm_k, samples),
        both=protocol == "both",
    )
    found = evaluate_request(given.session, request)
    _show(found, format, by, ranks)
    if found.unsaved is not None:
        raise found.unsaved


def _show(found: Evaluated, format: OutputFormat, by: Literal["scene", "length"] | None, ranks: bool) -> None:
    """One table per protocol, and one for its groups if requested.

    Notes go under the table if the format has room for them, else to stderr.
    """
    groups = [found.groups(by, report) for report in found.reports]
    if format == "json":
        documents = [_document(report, its) for report, its in zip(found.reports, groups, strict=True)]
        first, *others = documents
        emit((), (), "json", document={**first, **{_key(other): other for other in others}})
    else:
        for report, its in zip(found.reports, groups, strict=True):
            _show_tables(report, format, its, ranks)
    for text in dict.fromkeys(text for report in found.reports for text in _notes(report)):
        if format in ("table", "markdown", "latex"):
            echo(f"% {clean(text)}" if format == "latex" else f"\n{clean(text)}")
        else:
            note(text)


def _document(report: RetrievalReport, groups: tuple[GroupRow, ...]) -> dict[str, Any]:
    document = report.to_json()
    if groups:
        document["groups"] = [asdict(group) for group in groups]
    return document


def _key(document: dict[str, Any]) -> str:
    return str(document["stamp"]["protocol"]).replace("-", "_")


def _show_tables(report: RetrievalReport, format: OutputFormat, groups: tuple[GroupRow, ...], ranks: bool) -> None:
    stamp = report.stamp
    size = f"{stamp.images:,} images, {stamp.captions:,} captions"
    title = f"{stamp.model} on {stamp.dataset} {stamp.split}, {stamp.protocol} ({size})"
    rows = _rows(report)
    machine = format in ("csv", "jsonl")
    emit(rows, [*COLUMNS, *RANKS] if machine else COLUMNS, format, title)
    if ranks and not machine:
        echo("")
        emit(rows, [Column("stage"), *RANKS], format, "median rank: of the first match; all else in percent")
    if groups:
        emit([_group_row(group) for group in groups], GROUP_COLUMNS, format, "by group")


def _notes(report: RetrievalReport) -> list[str]:
    ties = "ties: the order of equal scores moves a recall by more than 0.1; shown is the mean over all orders"
    return [*report.notes, *([ties] if any(row.ties_matter for row in report.rows) else ())]


def _refuse_contradictions(
    run: str | None, features: Path | None, scores: Path | None, choose_on: Path | None, choose_split: str | None
) -> None:
    from cmpagl_core.errors import UsageError

    if features is not None and scores is not None:
        raise UsageError("--features and --scores cannot be evaluated at once", hint="give one of them")
    foreign = features is not None or scores is not None
    if foreign and run is not None:
        raise UsageError("--run cannot be combined with --features or --scores", hint="leave one of them out")
    if choose_on is not None and not foreign:
        raise UsageError("--choose-on is for --features and --scores", hint="a run chooses on its selection split")
    if choose_split is not None and choose_on is None:
        raise UsageError("--choose-split names the split of --choose-on", hint="give both, or neither")


def _refuse_mixing(protocol: str, format: OutputFormat) -> None:
    from cmpagl_core.errors import UsageError

    if protocol == "both" and format in ("csv", "jsonl"):
        raise UsageError(
            f"--format {format} would put both protocols into one column", hint="ask for json, or for one protocol"
        )


def _rows(report: RetrievalReport) -> list[dict[str, Any]]:
    return [
        {
            "stage": row.stage,
            **{f"i2t_{key}": getattr(row.i2t, key) for key in KEYS},
            **{f"t2i_{key}": getattr(row.t2i, key) for key in KEYS},
            "mr": row.mr,
            "mr_low": row.ci95.mr[0],
            "mr_high": row.ci95.mr[1],
            "ties": row.ties,
            **_ranks(row),
        }
        for row in report.rows
    ]


def _ranks(row: ReportRow) -> dict[str, float]:
    sides = {"i2t": row.i2t_ranks, "t2i": row.t2i_ranks}
    return {f"{side}_{key}": value for side, ranks in sides.items() for key, value in asdict(ranks).items()}


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
