"""`cmpagl index`: make a folder of pictures, or a data set, searchable."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cmpagl_cli.commands.options import DataOption, FormatOption, NameOption, RunOption, Settings, settings
from cmpagl_cli.views import Column, duration, emit

if TYPE_CHECKING:
    from cmpagl_core.search.indexing import BuiltIndex

Views = Literal["one", "dihedral"]


def index(
    ctx: typer.Context,
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A folder of pictures, searched in all its folders.")
    ] = None,
    data: DataOption = None,
    run: RunOption = None,
    name: NameOption = None,
    views: Annotated[
        Views | None,
        typer.Option(
            "--views",
            help="one: each picture as it is; dihedral: averaged over its eight flips and right angles, slower and "
            "better. As the index was made, else as the run's recipe says, if left out.",
        ),
    ] = None,
    format: FormatOption = "table",
) -> None:
    """Encode a folder of pictures with a run, so that `cmpagl retrieve` finds them; no captions are needed.

    Without DIR, all pictures of the run's data set are taken, with their captions. Called again, only pictures that
    are new or have changed are encoded; broken ones are named and left out.

    Examples:
      cmpagl index ~/aerial-archive
      cmpagl index ~/aerial-archive --name archive --run ucm-cpu --views one
      cmpagl index --data ucm
    """
    from cmpagl_core.errors import UsageError

    given = settings(ctx)
    if folder is not None and data is not None:
        raise UsageError("DIR and --data both name pictures", hint="give one of them")
    started_at = time.monotonic()
    built = (
        index_folder(given, folder, run, name, views)
        if folder is not None
        else index_dataset(given, data, run, name, views)
    )
    _show(built, time.monotonic() - started_at, format)
    given.progress.say(f'now ask it: cmpagl retrieve "..." --index {built.index.info.name}')


def index_folder(
    given: Settings, folder: Path, run: str | None, name: str | None, views: Views | None = None
) -> BuiltIndex:
    """Index a plain folder under its own name or another."""
    from cmpagl_core.runs import open_run
    from cmpagl_core.search.indexing import build_index, folder_source, seen_in

    found = open_run(given.workspace.find("runs", run))
    source = folder_source(folder)
    root = given.workspace.folder("indexes", name or _as_name(os.path.basename(source.source)))  # noqa: PTH119
    seen = seen_in(found, root, views)
    return build_index(seen, source, root, given.progress, given.compute_device(), given.workspace.cache)


def index_dataset(
    given: Settings, data: str | None, run: str | None, name: str | None, views: Views | None = None, wait: bool = False
) -> BuiltIndex:
    """Index all pictures of a data set, the run's own if none is named, under the run's name or another.

    wait: for another process that is making the same index, rather than be refused.
    """
    from cmpagl_core.datasets.prepared import open_prepared
    from cmpagl_core.runs import open_run
    from cmpagl_core.search.indexing import build_index, dataset_source, seen_in

    found = open_run(given.workspace.find("runs", run))
    own = Path(found.info.dataset_root)
    remembered = data is None and (own / "manifest.json").is_file()
    prepared = open_prepared(own if remembered else given.workspace.find("data", data or found.info.dataset))
    usual = found.root.name if prepared.name == found.info.dataset else f"{found.root.name}-{prepared.name}"
    root = given.workspace.folder("indexes", name or _as_name(usual))
    source = dataset_source(prepared)
    seen = seen_in(found, root, views)
    return build_index(seen, source, root, given.progress, given.compute_device(), given.workspace.cache, wait)


def _show(built: BuiltIndex, elapsed_s: float, format: str) -> None:
    made = built.index
    row = {
        "name": made.info.name,
        "pictures": len(made),
        "encoded": built.encoded,
        "left_out": len(built.left_out),
        "captions": len(made.caption_text),
        "run": made.info.model,
        "elapsed_s": round(elapsed_s, 3),
        "path": str(made.root),
    }
    if format == "table":
        row["elapsed_s"] = duration(elapsed_s)
    heads = {"encoded": "encoded now", "left_out": "left out", "elapsed_s": "time"}
    emit([row], [Column(key, heads.get(key, "")) for key in row], format)  # type: ignore[arg-type]


def _as_name(text: str) -> str:
    """A folder's name as the name of an index: what the workspace does not allow becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100] or "pictures"
