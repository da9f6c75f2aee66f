"""`cmpagl zeroshot`: classify a folder of images by class names alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cmpagl_cli.commands.options import (
    ActivationOption,
    DownloadOption,
    FormatOption,
    ModelOption,
    RunOption,
    TemplateOption,
    settings,
)
from cmpagl_cli.views import Column, emit


def zeroshot(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of images, including its subfolders.")],
    classes: Annotated[
        Path,
        typer.Option(
            "--classes", metavar="FILE", help="Class names, one per line, or a CSV with the columns image and class."
        ),
    ],
    template: TemplateOption = None,
    run: RunOption = None,
    model: ModelOption = None,
    activation: ActivationOption = None,
    download: DownloadOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="CSV", help="Write each image's top five classes to a file.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="PNG", help="Plot the confusion matrix (extra `plots`).")
    ] = None,
    format: FormatOption = "table",
) -> None:
    """Classify images by class names alone, and measure accuracy if their classes are known.

    An image's class is looked up by its file name in the CSV, else by its folder. Names are split into words:
    denseResidential becomes "dense residential". Intervals are over images.

    Examples:
      cmpagl zeroshot UCM/images --classes classes.csv
      cmpagl zeroshot scenes --classes names.txt --template "a satellite image of {}." --model remoteclip-b32
      cmpagl zeroshot scenes --classes names.txt --out predictions.csv --figure confusion.png
    """
    from cmpagl_core.encoders.named import named_encoder
    from cmpagl_core.encoders.open_clip import ClipOptions
    from cmpagl_core.encoders.prompts import chosen_templates
    from cmpagl_core.evaluation.zero_shot import classify, draw_confusion, read_classes, write_predictions

    given = settings(ctx)
    known = read_classes(classes)
    encoder = named_encoder(given.session, run, model, ClipOptions(activation, given.workspace.models, download))
    found = classify(encoder, folder, known, chosen_templates(template, model), given.progress)
    for why in found.left_out[:20]:
        given.progress.say(f"left out: {why}")
    if out is not None:
        write_predictions(found, out)
    if figure is not None:
        draw_confusion(found, figure)
    rows = [vars(row) for row in found.rows()]
    total = {
        "name": "all",
        "images": int(found.known.sum()),
        "top1": found.accuracy(1),
        "top5": found.accuracy(5),
        "predicted": len(found.image_ids),
    }
    columns = [
        Column("name", "class"),
        Column("images"),
        Column("top1", "top-1 %", digits=1),
        Column("top5", "top-5 %", digits=1),
        Column("predicted", "given to"),
    ]
    emit([*rows, total], columns, format, f"{found.model}, {len(found.image_ids):,} images", found.to_json())
    interval = found.interval(1)
    if interval is not None:
        given.progress.say(f"top-1 {found.accuracy(1):.1f} %, 95 % over images {interval[0]:.1f} to {interval[1]:.1f}")
    else:
        given.progress.say("no image has a known class, so there is no accuracy")
