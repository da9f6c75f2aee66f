"""`cmpagl doctor`: does this installation work, and if not, how to fix it."""

from __future__ import annotations

from typing import Annotated

import typer

from cmpagl_cli.commands.options import settings
from cmpagl_cli.views import Column, emit


def doctor(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False,
) -> None:
    """Check versions, device, weights and workspace. If something is broken, say how to fix it and exit with 1.

    Examples:
      cmpagl doctor
      cmpagl doctor --json
    """
    from cmpagl_core.doctor import examine, is_well

    given = settings(ctx)
    checks = examine(given.workspace, given.device, given.threads)
    rows = [{"check": check.name, "status": check.status, "found": check.found, "mend": check.mend} for check in checks]
    well = is_well(checks)
    columns = [Column("status"), Column("check"), Column("found"), Column("mend", "what to do")]
    emit(rows, columns, "json" if as_json else "table", document={"ok": well, "checks": rows})
    if not well:
        raise typer.Exit(1)
