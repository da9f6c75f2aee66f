"""Learning curves of a run as a picture, drawn from its log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cmpagl_core.files import atomic_path
from cmpagl_core.progress import Progress
from cmpagl_core.runs import LOG_FILE
from cmpagl_core.training.journal import read_journal

CURVES_FILE = "curves.png"

Point = tuple[float, float]


def draw_curves(root: Path, progress: Progress) -> None:
    """Draw `curves.png` beside the log of a run; without matplotlib, say how to get it."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        progress.say(
            f"{CURVES_FILE} was not drawn: matplotlib is missing; install it with `pip install 'cmpagl[plots]'`"
        )
        return
    panels = _panels(list(read_journal(root / LOG_FILE)))
    with mpl.rc_context({"font.size": 8, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(11, 6), layout="constrained")
        FigureCanvasAgg(figure)
        for place, (title, lines) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(2, 3, place)
            axes.set_title(title)
            axes.set_xlabel("epoch")
            for label, points in lines.items():
                axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
            if len(lines) > 1:
                axes.legend(frameon=False)
        with atomic_path(root / CURVES_FILE) as partial:
            figure.savefig(partial, dpi=130, format="png")


def _panels(events: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[Point]]]:
    """Title -> label -> points over epochs; lines without a point are left out."""
    epochs = [event for event in events if event["event"] == "epoch"]
    validations = [event for event in events if event["event"] == "validation"]
    steps = [event for event in events if event["event"] == "step"]
    last = max((event["step"] for event in steps), default=1)
    per_epoch = last / max((event["epoch"] for event in steps), default=1)
    over_steps = [(event["step"] / per_epoch, event) for event in steps]
    lines = {
        "loss": {name: _line(epochs, "terms", name) for name in (epochs[0]["terms"] if epochs else ())},
        "validation recall (%)": {
            "mR": _line(validations, "mr"),
            "image to text R@1": _line(validations, "i2t", "r1"),
            "text to image R@1": _line(validations, "t2i", "r1"),
        },
        "gradient norm": {"": [(x, event["gradient_norm"]) for x, event in over_steps if event["gradient_norm"]]},
        "learning rate of new parts": {"": [(x, event["lr"]) for x, event in over_steps]},
        "cosine of unmatched pairs": {"": _line(epochs, "unmatched_cosine")},
        "gates of the global window": {
            stage: _line(epochs, "gates", stage) for stage in (epochs[0]["gates"] if epochs else ())
        },
    }
    return {title: {label: points for label, points in of.items() if points} for title, of in lines.items()}


def _line(events: Sequence[dict[str, Any]], *keys: str) -> list[Point]:
    points = []
    for event in events:
        value: Any = event
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float):
            points.append((event["epoch"], float(value)))
    return points
