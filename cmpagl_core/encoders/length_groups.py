"""Groups texts by length, so that little time is spent on padding (ours)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Fits = Callable[[int, int, int], bool]
"""Whether texts may form a group, given their number and their shortest and longest length."""


def length_groups(lengths: ArrayLike, fits: Fits, longest_first: bool = False) -> list[NDArray[np.int64]]:
    """Rows of lengths [N], stably sorted by length and cut into groups as large as `fits` allows.

    A single row is always a group.
    """
    values = np.asarray(lengths, np.int64)
    order = np.argsort(-values if longest_first else values, kind="stable")
    ordered = values[order].tolist()
    groups: list[NDArray[np.int64]] = []
    start = 0
    for stop in range(1, len(ordered) + 1):
        if stop < len(ordered):
            shortest, longest = sorted((ordered[start], ordered[stop]))
            if fits(stop + 1 - start, shortest, longest):
                continue
        groups.append(order[start:stop])
        start = stop
    return groups
