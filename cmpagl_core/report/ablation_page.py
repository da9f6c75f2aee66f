"""An AblationTable as one HTML page."""

from __future__ import annotations

from cmpagl_core.ablation.table import AblationTable
from cmpagl_core.html_page import render_page
from cmpagl_core.report.charts import RowChart, Value, row_chart


def render_ablation(table: AblationTable) -> str:
    """The page as text."""
    return render_page(
        "cmpagl_core.report", "ablation.html", table=table, baseline=table.rows[0], deltas=_deltas(table)
    )


def _deltas(table: AblationTable) -> RowChart | None:
    values = []
    for row in table.rows:
        if row.delta is not None and row.delta_ci95 is not None:
            low, high = row.delta_ci95
            values.append(Value(row.variant, 0, row.delta, low, high, f"{row.variant}: {row.delta:+.2f}"))
    return row_chart(values, from_zero=True) if values else None
