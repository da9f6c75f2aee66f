"""Layout of charts; the page's template draws them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 620
_LEFT, _RIGHT, _TOP, _BOTTOM = 170, 20, 10, 30
_ROW, _MARK_GAP = 16, 10


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis, in pixels."""

    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """A value with its interval, as a dot with whiskers or the end of a bar; `side` selects the colour."""

    x: float
    y: float
    low: float
    high: float
    side: int
    title: str


@dataclass(frozen=True)
class RowChart:
    """Named rows, each with one mark per side, on a common scale."""

    height: float
    left: float
    right: float
    zero: float
    rows: tuple[Tick, ...]
    ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    width: float = WIDTH

    @property
    def floor(self) -> float:
        return self.height - _BOTTOM


@dataclass(frozen=True)
class Value:
    """One value of a row, in the unit of the axis."""

    row: str
    side: int
    value: float
    low: float | None = None
    high: float | None = None
    title: str = ""


@dataclass(frozen=True)
class Line:
    """A curve: its points for SVG, and one highlighted point."""

    points: str
    side: int
    label: str
    best_x: float | None = None
    best_y: float | None = None


@dataclass(frozen=True)
class LineChart:
    """Curves over epochs."""

    title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    width: float = 470.0
    height: float = 240.0
    left: float = 44.0
    floor: float = 210.0


def row_chart(values: Sequence[Value], from_zero: bool = False) -> RowChart:
    """Rows in order of first appearance. from_zero: bars need a scale that starts at 0, dots do not."""
    rows = list(dict.fromkeys(value.row for value in values))
    sides = 1 + max(value.side for value in values)
    ends = [end for value in values for end in (value.low, value.value, value.high) if end is not None]
    low, high, step = scale(min(ends), max(ends), from_zero)

    def x(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT), 2)

    height_of_row = _ROW + _MARK_GAP * sides
    marks = []
    for value in values:
        top = _TOP + rows.index(value.row) * height_of_row
        y = top + _ROW / 2 + _MARK_GAP * (value.side + 0.5)
        left, right = (x(value.value if end is None else end) for end in (value.low, value.high))
        marks.append(Mark(x(value.value), y, left, right, value.side, value.title))
    return RowChart(
        height=_TOP + len(rows) * height_of_row + _BOTTOM,
        left=_LEFT,
        right=WIDTH - _RIGHT,
        zero=x(max(low, min(0.0, high))),
        rows=tuple(Tick(_TOP + (place + 0.5) * height_of_row, row) for place, row in enumerate(rows)),
        ticks=tuple(Tick(x(at), label) for at, label in ticks(low, high, step)),
        marks=tuple(marks),
    )


def line_chart(title: str, curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], best: bool) -> LineChart | None:
    """Curves of (epoch, value); best: mark the highest point of each. A lone point is always marked.

    None if there is nothing to draw.
    """
    points = [point for _, curve in curves for point in curve if math.isfinite(point[1])]
    if not points:
        return None
    first, last = min(x for x, _ in points), max(max(x for x, _ in points), min(x for x, _ in points) + 1)
    low, high, step = scale(min(y for _, y in points), max(y for _, y in points), from_zero=False)
    empty = LineChart(title, (), (), ())

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = empty.left + (point[0] - first) / (last - first) * (empty.width - empty.left - 16)
        y = empty.floor - (point[1] - low) / (high - low) * (empty.floor - 12)
        return round(x, 1), round(y, 1)

    lines = []
    for side, (label, curve) in enumerate(curves):
        finite = [point for point in curve if math.isfinite(point[1])]
        drawn = " ".join(f"{x},{y}" for x, y in map(place, finite))
        marked = len(finite) == 1 or (best and bool(finite))  # a single point makes no line
        top = place(max(finite, key=lambda point: point[1])) if marked else (None, None)
        lines.append(Line(drawn, side, label, *top))
    _, _, epochs = scale(first, last, from_zero=False)
    return LineChart(
        title,
        tuple(Tick(place((at, low))[0], label) for at, label in ticks(first, last, max(1.0, epochs))),
        tuple(Tick(place((first, at))[1], label) for at, label in ticks(low, high, step)),
        tuple(lines),
    )


def scale(low: float, high: float, from_zero: bool) -> tuple[float, float, float]:
    """Ends and step of an axis that covers both values: the step is 1, 2 or 5 times a power of ten."""
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step


def ticks(low: float, high: float, step: float) -> list[tuple[float, str]]:
    """Round values from low to high with their labels."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(place * step, f"{place * step:,.{decimals}f}") for place in range(first, last + 1)]
