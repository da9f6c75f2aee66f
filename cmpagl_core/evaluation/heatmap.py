"""The gamma grid of SMR as a picture: how much the two parameters matter (extra `plots`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cmpagl_core.errors import CmpaglError
from cmpagl_core.evaluation.tune import SmrChoice
from cmpagl_core.files import atomic_path

_INCHES = (6.4, 5.2)
_DPI = 150


def save_heatmap(choice: SmrChoice, title: str, out: Path) -> None:
    """Write a PNG: mR without SMR subtracted, the chosen point framed.

    Raises CmpaglError when matplotlib is not installed or the disk refuses.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise CmpaglError("drawing needs matplotlib", hint="pip install 'cmpagl[plots]'") from error
    first = sorted({point.gamma1 for point in choice.grid})
    second = sorted({point.gamma2 for point in choice.grid})
    gain = np.array([point.mr - choice.plain_mr for point in choice.grid]).reshape(len(first), len(second))
    reach = max(float(np.abs(gain).max()), 1e-6)
    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    # symmetric around 0, so that the colour says whether SMR helps or hurts
    image = axes.imshow(gain, cmap="RdBu", vmin=-reach, vmax=reach, origin="lower", aspect="auto")
    axes.set_xticks(range(len(second)), [f"{gamma:g}" for gamma in second])
    axes.set_yticks(range(len(first)), [f"{gamma:g}" for gamma in first])
    axes.set_xlabel("gamma2 (range ratio)")
    axes.set_ylabel("gamma1 (backward rank)")
    axes.set_title(f"{title}\nform {choice.form}, mR without SMR {choice.plain_mr:.2f}", fontsize=10)
    for row in range(len(first)):
        for col in range(len(second)):
            colour = "white" if abs(gain[row, col]) > 0.6 * reach else "black"
            axes.text(col, row, f"{gain[row, col]:+.2f}", ha="center", va="center", color=colour, fontsize=8)
    corner = (second.index(choice.gamma2) - 0.5, first.index(choice.gamma1) - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="gold", linewidth=3))
    figure.colorbar(image, label="mR gained (points)")
    with atomic_path(out) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})
