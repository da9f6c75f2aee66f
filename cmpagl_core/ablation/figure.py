"""The differences of a study as a figure (extra `plots`)."""

from __future__ import annotations

from pathlib import Path

from cmpagl_core.ablation.table import AblationRow, AblationTable
from cmpagl_core.errors import UsageError
from cmpagl_core.files import atomic_path

_ROW_INCHES = 0.42


def draw_deltas(table: AblationTable, path: Path) -> None:
    """Each variant's mR minus the baseline's, with its 95 % interval, as PNG, PDF or SVG by the file extension.

    Raises UsageError without matplotlib or for another extension.
    """
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"{path}: a figure must be .png, .pdf or .svg")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("figures need matplotlib", hint="run `pip install 'cmpagl[plots]'`") from error
    rows = [row for row in table.rows if row.delta is not None]
    figure = Figure(figsize=(7.5, 1.2 + _ROW_INCHES * max(1, len(rows))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axvline(0.0, color="0.4", linewidth=1)
    for place, row in enumerate(rows):
        _draw(axes, place, row)
    axes.set_yticks(range(len(rows)), [row.variant for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    baseline = table.rows[0]
    axes.set_xlabel(f"mR minus the baseline's {baseline.mr:.2f}, percent points, 95 % interval")
    axes.set_title(f"{table.dataset}, {table.split} split, seeds {', '.join(map(str, baseline.seeds))}", fontsize=10)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=150)


def _draw(axes: object, place: int, row: AblationRow) -> None:
    """A dot with whiskers, filled if the difference is significant (p_holm < 0.05)."""
    delta, (low, high) = row.delta or 0.0, row.delta_ci95 or (0.0, 0.0)
    colour = "#1f6f8b" if delta <= 0 else "#c2571a"
    stands_out = row.p_holm is not None and row.p_holm < 0.05
    axes.plot([low, high], [place, place], color=colour, linewidth=2)  # type: ignore[attr-defined]
    axes.plot(  # type: ignore[attr-defined]
        delta, place, "o", color=colour, markerfacecolor=colour if stands_out else "white", markersize=7
    )
