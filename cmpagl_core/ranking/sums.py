"""Sums that do not depend on the order of their terms, so that neither file order nor tiling affects a rank (ours)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.ranking.scores import Floats

_MANTISSA_BITS = 52


def grid_unit(greatest: float, terms: int) -> float:
    """The step to which up to `terms` numbers of at most `greatest` are rounded so that float64 adds them exactly."""
    if greatest <= 0 or not math.isfinite(greatest):
        return 1.0
    bits = math.frexp(greatest)[1] + max(1, terms).bit_length()
    return math.ldexp(1.0, bits - _MANTISSA_BITS)


def grid_sum(values: Floats, axis: int, unit: float) -> NDArray[np.float64]:
    """Sum along `axis` of values rounded to multiples of `unit`; exact, so partial sums may be added in any order."""
    total: NDArray[np.float64] = np.rint(values.astype(np.float64) / unit).sum(axis=axis) * unit
    return total
