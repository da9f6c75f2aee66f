"""`cmpagl explain`: which image regions the ITM head used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmpagl_cli.commands.options import BandsOption, FormatOption, RunOption, StretchOption, settings
from cmpagl_cli.views import Column, emit

if TYPE_CHECKING:
    from cmpagl_core.explain.relevance import Explanation


def explain(
    ctx: typer.Context,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A caption of it, or a query.")],
    run: RunOption = None,
    png: Annotated[
        Path,
        typer.Option("--png", metavar="FILE", help="Output image: a relevance map per word, over the image."),
    ] = Path("explain.png"),
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a self-contained HTML page.")
    ] = None,
    bands: BandsOption = None,
    stretch: StretchOption = None,
    format: FormatOption = "table",
) -> None:
    """Show which image regions the ITM head uses for each word, and how much each stage uses its global window.

    Relevance is cross-attention weighted by the gradient of the match score. The run needs an ITM head.

    Examples:
      cmpagl explain airport_12.jpg "storage tanks beside a road"
      cmpagl explain airport_12.jpg "many planes" --html planes.html --run ucm-cpu
      cmpagl explain airport_12.jpg "many planes" --format json
    """
    from cmpagl_core.explain.doubts import doubts
    from cmpagl_core.explain.overlay import sheet, write_png
    from cmpagl_core.explain.page import write_page
    from cmpagl_core.explain.relevance import explain as look
    from cmpagl_core.imagery.images import open_image
    from cmpagl_core.imagery.reading import AUTO, Reading
    from cmpagl_core.runs import open_run

    given, reading = settings(ctx), Reading(bands or AUTO, stretch or AUTO)
    found = open_run(given.workspace.find("runs", run))
    explanation = look(found.load(given.compute_device()), image, text, reading)
    opened = open_image(image, reading=reading)
    write_png(png, sheet(opened, explanation))
    if html is not None:
        write_page(html, opened, image.name, explanation)
    for doubt in doubts(found, explanation):
        given.progress.say(doubt)
    document = _document(explanation)
    if format == "json":
        emit([], [], format, document=document)
        return
    emit(document["words"], [Column("word"), Column("percent", digits=1), Column("across"), Column("down")], format)
    if format == "table":
        stages = [
            Column("stage"),
            Column("local_windows", digits=3),
            Column("global_window", digits=3),
            Column("global_percent", digits=1),
        ]
        emit(document["stages"], stages, format)
        given.progress.say(f"match {document['match_percent']:.1f} %; written: {png}" + (f", {html}" if html else ""))


def _document(explanation: Explanation) -> dict[str, Any]:
    """The results without the maps; `across` and `down` locate the peak of a word's relevance, 0 to 1."""
    return {
        "text": explanation.text,
        "cosine": explanation.cosine,
        "match_percent": 100 * explanation.match_probability,
        "words": [
            {"word": word.word, "percent": 100 * word.share, "across": word.peak[0], "down": word.peak[1]}
            for word in explanation.words
        ],
        "stages": [
            {
                "stage": stage.stage,
                "local_windows": stage.local,
                "global_window": stage.global_window,
                "global_percent": 100 * stage.share,
            }
            for stage in explanation.stages
        ],
    }
