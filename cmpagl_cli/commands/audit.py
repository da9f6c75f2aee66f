"""`cmpagl audit`: what in a data set would make its recalls misleading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cmpagl_cli.commands.options import FormatOption, OutputFormat, settings
from cmpagl_cli.views import Column, emit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cmpagl_core.datasets.findings import Finding

_SHOWN = 3
_COLUMNS = [Column("check"), Column("where"), Column("found"), Column("of"), Column("leak")]


def audit(
    ctx: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]", help="Prepared data set by name or folder, or annotations. Default: the newest."
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="DATA", help="Also look for what it shares with this one.")
    ] = None,
    near: Annotated[
        bool, typer.Option("--near/--no-near", help="Look for near-duplicates too (extra `audit`).")
    ] = True,
    bits: Annotated[
        int, typer.Option("--bits", min=0, max=20, help="Bits of 64 in which hashes of near-duplicates may differ.")
    ] = 10,
    least_words: Annotated[int, typer.Option("--min-words", min=1, help="Captions with fewer words are short.")] = 3,
    most_words: Annotated[
        int, typer.Option("--max-words", min=1, help="Captions with more words are long; recipes read 64 tokens.")
    ] = 62,
    run: Annotated[
        str | None, typer.Option("--run", metavar="NAME|DIR", help="Run whose features confirm near-duplicates.")
    ] = None,
    fail_on: Annotated[
        Literal["leak", "any"] | None, typer.Option("--fail-on", help="Exit with 4 if there is a leak, or any finding.")
    ] = None,
    format: FormatOption = "table",
) -> None:
    """Find blank, short, long, repeated and shared captions, odd sizes, and images that occur twice.

    Images are compared by content, and by what they show: turned, mirrored, shifted or recompressed copies are found.
    An image in two splits, and a tested caption that another data set trains on, are leaks. Annotations can be audited
    before they are prepared; they have no images.

    Examples:
      cmpagl audit ucm
      cmpagl audit rsicd --against rsitmd --fail-on leak
      cmpagl audit dataset_rsitmd.json --format json
      cmpagl audit mine --run ucm-cpu --bits 14
    """
    from cmpagl_core.datasets.audit import AuditRequest
    from cmpagl_core.datasets.audit import audit as audit_data
    from cmpagl_core.datasets.audit_captions import CaptionLimits
    from cmpagl_core.errors import GuardError

    given = settings(ctx)
    request = AuditRequest(data, against, CaptionLimits(least_words, most_words), bits if near else None)
    found = audit_data(request, given.workspace, given.progress, None if run is None else _features(given, run))
    about = found.data if found.against is None else f"{found.data} against {found.against}"
    emit(_rows(found.findings, format), [*_COLUMNS, Column("examples")], format, f"Audit of {about}", found.document())
    if not found.images:
        given.progress.say("captions alone: annotations have no images; `cmpagl prepare` checks those")
    if not found.findings:
        given.progress.say(f"nothing was found in {about}")
    failing = {"leak": found.leaks, "any": found.findings, None: ()}[fail_on]
    if failing:
        raise GuardError(
            f"{about} has {len(failing):,} {'leaks' if fail_on == 'leak' else 'findings'}, the first: "
            f"{failing[0].check} ({failing[0].where}): {failing[0].found:,} of {failing[0].of:,}",
            hint="remove them from training or report results without them",
        )


def _features(given: Any, run: str) -> Any:
    from cmpagl_core.encoders.encoder import collect
    from cmpagl_core.encoders.named import named_encoder
    from cmpagl_core.encoders.open_clip import ClipOptions

    encoder = named_encoder(given.session, run, None, ClipOptions(None, given.workspace.models, False))
    return lambda images: collect(encoder.encode_images(images), len(images), given.progress)


def _rows(findings: Sequence[Finding], format: OutputFormat) -> list[dict[str, Any]]:
    """People see a few examples, machine formats all that are kept."""
    rows = []
    for finding in findings:
        row = {key: getattr(finding, key) for key in ("check", "where", "found", "of", "leak")}
        if format in ("csv", "json", "jsonl"):
            rows.append({**row, "examples": [item.document() for item in finding.items]})
        else:
            named = list(dict.fromkeys(_example(item.image_id, item.other) for item in finding.items))
            more = ", ..." if len(named) > _SHOWN else ""
            rows.append({**row, "leak": "yes" if finding.leak else "", "examples": ", ".join(named[:_SHOWN]) + more})
    return rows


def _example(image_id: str, other: str) -> str:
    return f"{image_id} = {other}" if other else image_id
