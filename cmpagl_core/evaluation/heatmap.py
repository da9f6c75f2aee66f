"""SMR's gamma grid as a figure, alone or beside every other re-ranking (extra `plots`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import CmpaglError
from cmpagl_core.evaluation.sensitivity import FORMS, Sensitivity, Setting
from cmpagl_core.evaluation.tune import SmrChoice
from cmpagl_core.files import atomic_path

_INCHES = (6.4, 5.2)
_WIDE_INCHES = (15.0, 5.2)
_DPI = 150
_NO_REACH = 1e-6  # points of mR, so that a grid of nothing but zeros has a scale


@dataclass(frozen=True, eq=False)
class _Grid:
    """Points of mR gained, [gamma1, gamma2], and the pair to frame."""

    gamma1: list[float]
    gamma2: list[float]
    gain: NDArray[np.float64]
    framed: tuple[float, float]

    @property
    def reach(self) -> float:
        return max(float(np.abs(self.gain).max()), _NO_REACH)

    @classmethod
    def of(cls, points: Sequence[tuple[float, float, float]], framed: tuple[float, float]) -> _Grid:
        """points: gamma1, gamma2 and gain of a whole grid, by gamma1, then gamma2."""
        first = sorted({gamma1 for gamma1, _, _ in points})
        second = sorted({gamma2 for _, gamma2, _ in points})
        gain = np.array([gain for _, _, gain in points]).reshape(len(first), len(second))
        return cls(first, second, gain, framed)


def save_heatmap(choice: SmrChoice, title: str, out: Path) -> None:
    """Write a PNG of the gain in mR over no SMR, with the chosen point framed.

    Raises CmpaglError if matplotlib is not installed or writing fails.
    """
    grid = _Grid.of(
        [(point.gamma1, point.gamma2, point.mr - choice.plain_mr) for point in choice.grid],
        (choice.gamma1, choice.gamma2),
    )
    figure = _figure(_INCHES)
    axes = figure.add_subplot()
    image = _draw_grid(axes, grid, grid.reach)
    axes.set_title(f"{title}\nform {choice.form}, mR without SMR {choice.plain_mr:.2f}", fontsize=10)
    figure.colorbar(image, label="mR gained (points)")
    _save(figure, out)


def save_sensitivity(found: Sensitivity, title: str, out: Path) -> None:
    """Write a PNG: the grids of both forms on one colour scale, and all re-rankings' gains with intervals.

    Raises CmpaglError if matplotlib is not installed or writing fails.
    """
    figure = _figure(_WIDE_INCHES)
    panels = figure.subplots(1, 3, width_ratios=(1.0, 1.0, 1.1))
    summaries = {form: found.summary(form) for form in FORMS}
    grids = {}
    for form in FORMS:
        best = summaries[form].best
        points = [(one.gamma1 or 0.0, one.gamma2 or 0.0, one.gain) for one in found.grid(form)]
        grids[form] = _Grid.of(points, (best.gamma1 or 0.0, best.gamma2 or 0.0))
    reach = max(grid.reach for grid in grids.values())
    for axes, form in zip(panels[:2], FORMS, strict=True):
        image = _draw_grid(axes, grids[form], reach)
        axes.set_title(f"SMR, form {form}", fontsize=10)
    figure.colorbar(image, ax=panels[:2], label="mR gained (points)")
    shown = [one for form in FORMS for one in (summaries[form].best, summaries[form].worst)] + list(found.others)
    _draw_gains(panels[2], shown)
    figure.suptitle(f"{title}: mR {found.plain_mr:.2f} without re-ranking", fontsize=11)
    _save(figure, out)


def label_of(setting: Setting) -> str:
    """A setting in a few words: `smr multiply (1, 4)`, `dual_softmax T = 20`."""
    if setting.gamma1 is not None and setting.gamma2 is not None:
        return f"{setting.reranking} ({setting.gamma1:g}, {setting.gamma2:g})"
    if setting.temperature is not None:
        return f"{setting.reranking} T = {setting.temperature:g}"
    return setting.reranking


def _figure(inches: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CmpaglError("drawing needs matplotlib", hint="pip install 'cmpagl[plots]'") from error
    return Figure(figsize=inches, dpi=_DPI, layout="constrained")


def _draw_grid(axes: Any, grid: _Grid, reach: float) -> Any:
    """A heat map with numbers; colours are symmetric around 0, so they show whether SMR helps or hurts."""
    from matplotlib.patches import Rectangle

    image = axes.imshow(grid.gain, cmap="RdBu", vmin=-reach, vmax=reach, origin="lower", aspect="auto")
    axes.set_xticks(range(len(grid.gamma2)), [f"{gamma:g}" for gamma in grid.gamma2])
    axes.set_yticks(range(len(grid.gamma1)), [f"{gamma:g}" for gamma in grid.gamma1])
    axes.set_xlabel("gamma2 (range ratio)")
    axes.set_ylabel("gamma1 (backward rank)")
    for (row, col), gain in np.ndenumerate(grid.gain):
        colour = "white" if abs(gain) > 0.6 * reach else "black"
        axes.text(col, row, f"{gain:+.2f}", ha="center", va="center", color=colour, fontsize=8)
    corner = (grid.gamma2.index(grid.framed[1]) - 0.5, grid.gamma1.index(grid.framed[0]) - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="gold", linewidth=3))
    return image


def _draw_gains(axes: Any, settings: Sequence[Setting]) -> None:
    """A dot with whiskers for each, the first on top."""
    axes.axvline(0.0, color="0.4", linewidth=1)
    for place, setting in enumerate(settings):
        axes.plot(setting.gain_ci95, [place, place], color="#1f6f8b", linewidth=2)
        axes.plot(setting.gain, place, "o", color="#1f6f8b", markersize=6)
    axes.set_yticks(range(len(settings)), [label_of(setting) for setting in settings], fontsize=8)
    axes.set_ylim(len(settings) - 0.5, -0.5)
    axes.set_xlabel("mR gained (points), 95 % interval")
    axes.set_title("each form's best and worst pair, and the others", fontsize=10)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, out: Path) -> None:
    with atomic_path(out) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
