"""`cmpagl compare`: is the difference between two runs larger than the sampling noise of the test images?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cmpagl_cli.commands.options import FormatOption, Settings, settings
from cmpagl_cli.views import Column, emit, note

if TYPE_CHECKING:
    from cmpagl_core.evaluation.result import RetrievalReport

SideArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN[,RUN...]",
        help="A run, or several seeds of it, comma-separated: names, folders, or saved JSON results.",
    ),
]


def compare(
    ctx: typer.Context,
    a: SideArgument,
    b: SideArgument,
    split: Annotated[str, typer.Option(help="Split on which both were evaluated.")] = "test",
    protocol: Annotated[Literal["rsitr", "duplicate-aware"], typer.Option(help="As for evaluate.")] = "rsitr",
    stage: Annotated[str, typer.Option(metavar="STAGE", help="Stage to compare. Default: the plain ranking.")] = "",
    mix: Annotated[bool, typer.Option("--mix", help="Compare even if the stamps differ.")] = False,
    permutations: Annotated[int, typer.Option(min=99, help="Permutations of the randomisation test.")] = 10_000,
    format: FormatOption = "table",
) -> None:
    """Compare two evaluated runs by paired randomisation tests over images, Holm-corrected.

    Several seeds of one side are averaged per image, and their spread is shown. Intervals of the difference are 95 %.
    Results of another split, protocol or data set are refused (exit code 4).

    Examples:
      cmpagl compare ucm-cpu ucm-cpu-plain
      cmpagl compare base-0,base-1,base-2 mine-0,mine-1,mine-2 --stage cosine+smr
    """
    from dataclasses import asdict

    from cmpagl_core.evaluation.intervals import compare as compare_results
    from cmpagl_core.evaluation.protocol import require_one_column

    given = settings(ctx)
    left = [_report(given, name, split, protocol) for name in a.split(",")]
    right = [_report(given, name, split, protocol) for name in b.split(",")]
    names = dict(zip([*a.split(","), *b.split(",")], [*left, *right], strict=True))
    differing = require_one_column({name: report.stamp for name, report in names.items()}, mix)
    rows = compare_results(
        [report.queries.per_image(stage or report.first.stage) for report in left],
        [report.queries.per_image(stage or report.first.stage) for report in right],
        permutations,
    )
    stages = stage or " and ".join(dict.fromkeys(report.first.stage for report in names.values()))
    shown = [{**asdict(row), "low": row.ci95[0], "high": row.ci95[1]} for row in rows]
    columns = [
        Column("metric"),
        Column("a", a),
        Column("a_std", "std"),
        Column("b", b),
        Column("b_std", "std"),
        Column("delta"),
        Column("low", "from"),
        Column("high", "to (95 %)"),
        Column("p", digits=4),
        Column("p_holm", "p (Holm)", digits=4),
    ]
    notes = [f"mixed: {text}" for text in differing]
    notes += [f"{name}: {text}" for name, report in names.items() for text in report.notes]
    document = {
        "a": a,
        "b": b,
        "stage": stages,
        "mixed": differing,
        "notes": notes,
        "rows": [asdict(row) for row in rows],
    }
    emit(shown, columns, format, f"{b} against {a}, {stages}", document)
    for text in notes:
        note(text)


def _report(given: Settings, name: str, split: str, protocol: str) -> RetrievalReport:
    from cmpagl_core.errors import DataError
    from cmpagl_core.evaluation.result import load_report, report_path

    if name.endswith(".json"):
        return load_report(Path(name))
    path = report_path(given.workspace.find("runs", name.strip()), split, protocol)
    if not path.is_file():
        option = "" if protocol == "rsitr" else f" --protocol {protocol}"
        raise DataError(
            f"{name} was not evaluated on {split} ({path} is missing)",
            hint=f"run `cmpagl evaluate --run {name} --split {split}{option}`",
        )
    return load_report(path)
