"""`cmpagl models`: published models that can be used by name."""

from __future__ import annotations

from typing import Annotated

import typer

from cmpagl_cli.commands.options import FormatOption, settings
from cmpagl_cli.views import Column, emit


def models_list(ctx: typer.Context, format: FormatOption = "table") -> None:
    """List the published models that `index --model` and `export --model` take by name.

    Examples:
      cmpagl models list
      cmpagl models list --format json
    """
    from cmpagl_core.encoders.published_models import PUBLISHED_MODELS, local_file

    given = settings(ctx)
    rows = [
        {
            "name": model.name,
            "architecture": model.spec,
            "licence": model.licence,
            "here": local_file(model, given.workspace.models) is not None,
            "verified": model.verified,
            "source": model.source,
        }
        for model in PUBLISHED_MODELS
    ]
    emit(rows, [Column(key) for key in rows[0]], format)


def models_show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name, as in `cmpagl models list`.")],
    format: FormatOption = "table",
) -> None:
    """Show a published model: its file, where to get it, its architecture, and the sources of these facts.

    Examples:
      cmpagl models show remoteclip-b32
      cmpagl models show skyclip-l14 --format json
    """
    from cmpagl_core.encoders.published_models import local_file, published_model

    given = settings(ctx)
    model = published_model(name)
    file = local_file(model, given.workspace.models)
    document = {
        "name": model.name,
        "architecture": model.architecture,
        "activation": model.activation,
        "file": model.file,
        "licence": model.licence,
        "source": model.source,
        "sha256": model.sha256,
        "verified": model.verified,
        "template": model.template,
        "note": model.note,
        "here": "" if file is None else str(file),
    }
    rows = [{"key": key, "value": value} for key, value in document.items()]
    emit(rows, [Column("key"), Column("value")], format, document=document)
