"""`cmpagl ablate`: train a recipe with and without each claim of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmpagl_cli.commands.options import DataOption, SetOption, Settings, settings
from cmpagl_cli.views import Column, duration, echo, emit

if TYPE_CHECKING:
    from cmpagl_core.ablation.setting import Start
    from cmpagl_core.ablation.study import StudyForecast
    from cmpagl_core.ablation.table import AblationRow, AblationTable
    from cmpagl_core.ablation.variants import Switch, Variant

Format = Literal["table", "json", "csv", "markdown", "latex", "html"]

_TRIPLETS = "none|plain|intra|hardest|sum|circle|supcon"
_RERANKINGS = "galr|csls|dual-softmax|sinkhorn"
_STUDIES = "gswin|global-window|global-window-parts|pre-alignment|triplet|smr|all"

RecipeArgument = Annotated[
    str | None, typer.Argument(metavar="RECIPE", help="The baseline. Default: the newest run's recipe.")
]
NoGlobalWindow = Annotated[bool, typer.Option("--no-global-window", help="Plain Swin.")]
Source = Annotated[
    Literal["avgpool", "random"] | None,
    typer.Option("--global-window-source", help="Instead of convolutions; random: fixed tokens, never trained."),
]
NoShifts = Annotated[bool, typer.Option("--no-shifts", help="Regular windows in every branch.")]
Query = Annotated[Literal["global"] | None, typer.Option("--global-query", help="GCViT's direction.")]
Branches = Annotated[Literal["parallel"] | None, typer.Option("--branches", help="Instead of sequential branches.")]
NoPreAlignment = Annotated[bool, typer.Option("--no-pre-alignment", help="Neither ITC nor triplet loss before fusion.")]
NoItc = Annotated[bool, typer.Option("--no-itc", help="Without the contrastive loss.")]
NoTriplet = Annotated[bool, typer.Option("--no-triplet", help="Without the triplet loss.")]
Triplets = Annotated[
    list[str] | None, typer.Option("--triplet", metavar=_TRIPLETS, help="Another metric loss; repeatable.")
]
NoItm = Annotated[bool, typer.Option("--no-itm", help="Without image-text matching.")]
ItmNegatives = Annotated[
    Literal["any"] | None,
    typer.Option("--itm-negatives", help="Uniform instead of hard negatives for image-text matching."),
]
NoMlm = Annotated[bool, typer.Option("--no-mlm", help="Without masked language modelling.")]
NoSmr = Annotated[bool, typer.Option("--no-smr", help="Without SMR; needs no retraining.")]
SmrForm = Annotated[
    Literal["multiply", "add"] | None, typer.Option("--smr-form", help="Other SMR form; needs no retraining.")
]
Rerank = Annotated[
    list[str] | None,
    typer.Option("--rerank", metavar=_RERANKINGS, help="Instead of SMR; repeatable; needs no retraining."),
]
Split = Annotated[
    list[int] | None,
    typer.Option("--text-split", min=1, metavar="LAYERS", help="Layers of the text encoder; repeatable."),
]
Studies = Annotated[
    list[str] | None, typer.Option("--study", metavar=_STUDIES, help="All switches of one claim; repeatable.")
]
Seeds = Annotated[str | None, typer.Option("--seeds", metavar="0,1,2", help="Seeds. Default: the recipe's.")]
Factorial = Annotated[
    bool, typer.Option("--full-factorial", help="Every combination of the switches instead of one at a time.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be trained and how long it takes.")]
On = Annotated[Literal["val", "test"], typer.Option("--split", help="Split on which variants are compared.")]
Base = Annotated[
    Literal["cosine", "itm"] | None,
    typer.Option("--judge", help="Compare by these scores, re-ranked. Default: each variant's last stage."),
]
Results = Annotated[
    Path | None,
    typer.Option("--results", metavar="DIR", help="Folder of finished results. Default: in the workspace."),
]
Figure = Annotated[
    Path | None, typer.Option("--figure", metavar="FILE", help="Plot the differences to a .png, .pdf or .svg file.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the table to a file instead of stdout.")]
FormatOption = Annotated[Format, typer.Option("--format", help="Format of the table.")]


def ablate(
    ctx: typer.Context,
    recipe: RecipeArgument = None,
    no_global_window: NoGlobalWindow = False,
    global_window_source: Source = None,
    no_shifts: NoShifts = False,
    global_query: Query = None,
    branches: Branches = None,
    no_pre_alignment: NoPreAlignment = False,
    no_itc: NoItc = False,
    no_triplet: NoTriplet = False,
    triplet: Triplets = None,
    no_itm: NoItm = False,
    itm_negatives: ItmNegatives = None,
    no_mlm: NoMlm = False,
    no_smr: NoSmr = False,
    smr_form: SmrForm = None,
    rerank: Rerank = None,
    text_split: Split = None,
    study: Studies = None,
    seeds: Seeds = None,
    full_factorial: Factorial = False,
    dry_run: DryRun = False,
    data: DataOption = None,
    split: On = "test",
    judge: Base = None,
    overrides: SetOption = None,
    results: Results = None,
    figure: Figure = None,
    out: Out = None,
    format: FormatOption = "table",
) -> None:
    """Train a recipe with and without each switch, and test which differences are significant.

    Models and gammas are chosen on the selection split; variants are compared on --split. Finished variants are
    reused, and those that differ only in re-ranking need no training. Run an interrupted study again to continue it.

    Examples:
      cmpagl ablate --no-global-window
      cmpagl ablate ucm-cpu --study gswin --seeds 0,1,2 --dry-run
      cmpagl ablate ucm-cpu --triplet plain --triplet circle --no-triplet --format markdown
      cmpagl ablate --study smr --figure smr.png
      cmpagl ablate ucm-cpu --no-itm --no-mlm --full-factorial --format html --out study.html
    """
    from cmpagl_core.ablation.study import run_study

    given = settings(ctx)
    start, variants, plan, chosen = _plan(given, ctx.params)
    if dry_run:
        _show_plan(plan, format)
        return
    table = run_study(variants, chosen, start.setting, judge)
    _show_table(table, format, out)
    if figure is not None:
        _draw(given, table, figure)


def _plan(
    given: Settings, flags: Mapping[str, Any]
) -> tuple[Start, tuple[Variant, ...], StudyForecast, tuple[int, ...]]:
    """The study's baseline, variants, remaining work and seeds; announces the cost."""
    from cmpagl_core.ablation.setting import measured_training, start_study
    from cmpagl_core.ablation.study import forecast
    from cmpagl_core.ablation.variants import full_factorial, one_at_a_time, switches_of

    asked = _seeds(flags["seeds"])
    switches = switches_of(_named(flags), flags["study"] or (), flags["text_split"] or ())
    start = start_study(
        given.workspace,
        flags["recipe"],
        flags["overrides"] or (),
        flags["data"],
        flags["split"],
        flags["results"],
        given.compute_device(),
        given.progress,
    )
    variants = (full_factorial if flags["full_factorial"] else one_at_a_time)(start.recipe, switches)
    seeds = asked or start.seeds
    plan = forecast(variants, seeds, start.setting, lambda: measured_training(start))
    _announce(given, plan, switches, variants)
    return start, variants, plan, seeds


def _draw(given: Settings, table: AblationTable, figure: Path) -> None:
    from cmpagl_core.ablation.figure import draw_deltas

    draw_deltas(table, figure)
    given.progress.say(f"figure: {figure}")


def _named(flags: Mapping[str, Any]) -> list[str]:
    """Names of the switches that the flags set."""
    single = ("no_global_window", "no_shifts", "no_pre_alignment", "no_itc", "no_triplet", "no_itm", "no_mlm", "no_smr")
    valued = ("global_window_source", "global_query", "branches", "itm_negatives")
    names = [name.replace("_", "-") for name in single if flags[name]]
    names += [f"{name.replace('_', '-')}-{flags[name]}" for name in valued if flags[name]]
    names += ["no-triplet" if kind == "none" else f"triplet-{kind}" for kind in flags["triplet"] or ()]
    names += [f"smr-{flags['smr_form']}"] if flags["smr_form"] else []
    return [*names, *(flags["rerank"] or ())]


def _seeds(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list such as 0,1,2", param_hint="--seeds") from None


def _announce(given: Settings, plan: StudyForecast, switches: Sequence[Switch], variants: Sequence[Variant]) -> None:
    """Report the cost before the study starts."""
    from cmpagl_core.ablation.variants import left_out

    for name in left_out(switches, variants):
        given.progress.say(f"{name} changes nothing in this recipe and is left out")
    if plan.trainings == 0:
        time = "no training needed"
    elif plan.total_s is None:
        time = f"{plan.trainings} trainings; their duration is known once the first has ended"
    else:
        each = duration(plan.seconds_per_training or 0.0)
        time = f"{plan.trainings} trainings of about {each}: about {duration(plan.total_s)}"
    given.progress.say(f"{len(variants)} variants, {plan.evaluations} evaluations to run, {time}")


def _show_plan(plan: StudyForecast, format: Format) -> None:
    rows = [{"variant": step.variant.name, "seed": step.trial.seed, "todo": step.todo} for step in plan.steps]
    document = {
        "steps": rows,
        "trainings": plan.trainings,
        "evaluations": plan.evaluations,
        "seconds_per_training": plan.seconds_per_training,
        "total_s": plan.total_s,
    }
    columns = [Column("variant"), Column("seed"), Column("todo", "to do")]
    emit(rows, columns, "table" if format == "html" else format, document=document)


def _show_table(table: AblationTable, format: Format, out: Path | None) -> None:
    text = _rendered(table, format)
    if out is None:
        echo(text)
        return
    from cmpagl_core.files import write_text

    write_text(out, text + "\n")


def _rendered(table: AblationTable, format: Format) -> str:
    if format == "html":
        from cmpagl_core.report.ablation_page import render_ablation

        return render_ablation(table)
    from cmpagl_cli.views import render

    if format == "csv":
        rows = [_machine_row(row) for row in table.rows]
        return render(rows, [Column(key) for key in rows[0]], "csv")
    people = [_row_for_people(row) for row in table.rows]
    columns = [Column(key, head) for key, head in _HEADS.items()]
    title = f"{table.dataset}, {table.split} split ({table.images:,} images), chosen on the selection split"
    return render(people, columns, format, table.to_json(), title)


_HEADS = {
    "variant": "variant",
    "stage": "judged at",
    **{f"{side}_{key}": f"{side} R@{key[1:]}" for side in ("i2t", "t2i") for key in ("r1", "r5", "r10")},
    "mr": "mR",
    "delta": "difference",
    "p": "p (Holm)",
    "parameters": "parameters",
    "seconds": "s / epoch",
}


def _recalls(row: AblationRow) -> dict[str, float]:
    return {f"{side}_{key}": getattr(getattr(row, side), key) for side in ("i2t", "t2i") for key in ("r1", "r5", "r10")}


def _row_for_people(row: AblationRow) -> dict[str, Any]:
    spread = "" if row.mr_std is None else f" ± {row.mr_std:.2f}"
    delta = p = ""
    if row.delta is not None and row.delta_ci95 is not None:
        delta = f"{row.delta:+.2f} [{row.delta_ci95[0]:+.2f}, {row.delta_ci95[1]:+.2f}]"
        p = f"{row.p_value:.4f} ({row.p_holm:.4f})"
    return {
        "variant": row.variant,
        "stage": row.stage,
        **_recalls(row),
        "mr": f"{row.mr:.2f}{spread}",
        "delta": delta,
        "p": p,
        "parameters": row.parameters,
        "seconds": f"{row.seconds_per_epoch:.1f}",
    }


def _machine_row(row: AblationRow) -> dict[str, Any]:
    low, high = row.delta_ci95 or (None, None)
    kept = {key: value for key, value in asdict(row).items() if key not in ("i2t", "t2i", "delta_ci95")}
    return {**kept, **_recalls(row), "delta_low": low, "delta_high": high}
