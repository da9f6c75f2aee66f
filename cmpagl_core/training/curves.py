"""Learning curves of a run as one figure, drawn from its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmpagl_core.errors import DataError
from cmpagl_core.files import atomic_path
from cmpagl_core.progress import Progress
from cmpagl_core.runs import LOG_FILE
from cmpagl_core.training.journal import read_journal

CURVES_FILE = "curves.png"

_DRAWN = 1e30  # larger values would break matplotlib's axes

Point = tuple[float, float]


def draw_curves(root: Path, progress: Progress) -> None:
    """Draw `curves.png` beside a run's log; without matplotlib, print how to install it."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        progress.say(
            f"{CURVES_FILE} was not drawn: matplotlib is missing; install it with `pip install 'cmpagl[plots]'`"
        )
        return
    try:
        panels = curve_panels(list(read_journal(root / LOG_FILE)))
    except (DataError, LookupError, TypeError, ValueError, ArithmeticError) as error:  # the finished run is kept
        progress.say(f"{CURVES_FILE} was not drawn: {LOG_FILE} was edited or is corrupt ({error})")
        return
    with mpl.rc_context({"font.size": 8, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(11, 9), layout="constrained")
        FigureCanvasAgg(figure)
        for place, panel in enumerate(panels, start=1):
            axes = figure.add_subplot(3, 3, place)
            axes.set_title(panel.title)
            axes.set_xlabel("epoch")
            for label, points in panel.lines.items():
                axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
            for name, epoch in panel.warnings:
                axes.axvline(epoch, color="tab:red", linestyle=":", label=name)
            if not panel.lines:  # as the gradient's shares, where the losses do not all act through the image tokens
                axes.set(xticks=(), yticks=())
                axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
            if len(panel.lines) > 1 or panel.warnings:
                axes.legend(frameon=False)
        with atomic_path(root / CURVES_FILE) as partial:
            figure.savefig(partial, dpi=130, format="png")


@dataclass(frozen=True)
class Panel:
    """One plot: points (epoch, value) by label, and the warnings about these lines with their epochs."""

    title: str
    lines: Mapping[str, Sequence[Point]]
    warnings: tuple[tuple[str, float], ...]


def curve_panels(events: Sequence[dict[str, Any]]) -> list[Panel]:
    """One panel for each quantity that the monitor checks, from a log's events; lines without points are left out."""
    epochs = [event for event in events if event["event"] == "epoch"]
    validations = [event for event in events if event["event"] == "validation"]
    steps = [event for event in events if event["event"] == "step"]
    per_epoch = _steps_per_epoch(steps)
    over_steps = [(event["step"] / per_epoch, event) for event in steps]
    warnings = _warnings(events, per_epoch)
    rows: list[tuple[str, str, dict[str, list[Point]]]] = [
        ("loss", "idle matching head", _each(epochs, "terms")),
        (
            "validation recall (%)",
            "overfitting",
            {
                "mR": _line(validations, "mr"),
                "image to text R@1": _line(validations, "i2t", "r1"),
                "text to image R@1": _line(validations, "t2i", "r1"),
            },
        ),
        (
            "gradient norm",
            "gradient spike",
            {"": [(x, float(event["gradient_norm"])) for x, event in over_steps if event["gradient_norm"]]},
        ),
        ("learning rate of new parts", "", {"": [(x, float(event["lr"])) for x, event in over_steps]}),
        (
            "logit scale",
            "logit scale at its clamp",
            {"scale": _line(epochs, "logit_scale"), "its clamp": _line(epochs, "logit_scale_max")},
        ),
        ("cosine of unmatched pairs", "collapsed features", {"": _line(epochs, "unmatched_cosine")}),
        ("gates of the global window", "dead global window", _each(epochs, "gates")),
        ("share of the gradient", "one loss dominates", _each(epochs, "gradient_shares")),
        ("share of time waiting for images", "starving loader", {"": _line(epochs, "waiting_share")}),
    ]
    return [
        Panel(
            title,
            {label: points for label, points in lines.items() if points},
            tuple((name, epoch) for name, epoch in warnings if name == warning),
        )
        for title, warning, lines in rows
    ]


def _warnings(events: Sequence[dict[str, Any]], per_epoch: float) -> list[tuple[str, float]]:
    """Each warning's name and epoch, which is that of the event before it in the log."""
    found, now = [], 0.0
    for event in events:
        if event["event"] == "step":
            now = event["step"] / per_epoch
        elif event["event"] == "warning":
            found.append((str(event["name"]), now))
    return found


def _steps_per_epoch(steps: Sequence[dict[str, Any]]) -> float:
    last = max((event["step"] for event in steps), default=1)
    return last / max((event["epoch"] for event in steps), default=1)


def _each(epochs: Sequence[dict[str, Any]], key: str) -> dict[str, list[Point]]:
    """One line for each entry that any epoch has under `key`."""
    names = dict.fromkeys(name for event in epochs for name in event.get(key) or ())
    return {name: _line(epochs, key, name) for name in names}


def _line(events: Sequence[dict[str, Any]], *keys: str) -> list[Point]:
    points = []
    for event in events:
        value: Any = event
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float) and abs(value) <= _DRAWN:
            points.append((float(event["epoch"]), float(value)))
    return points
