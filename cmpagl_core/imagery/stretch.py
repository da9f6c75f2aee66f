"""From a sensor's values to 8 bits: what a Rendering says is done alike with every pixel of a scene (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.imagery.bands import BandPlan
from cmpagl_core.imagery.reading import Reading

Planes = NDArray[Any]  # [B, H, W] in the file's own type
Valid = NDArray[np.bool_]
Values = NDArray[np.floating[Any]]

_USUAL_PERCENTILES = (2.0, 98.0)
_LARGEST_VALUE = 1e30  # what is larger in a float band stands for "no data" (3.4e38), whatever the header says
_MASK_SHARE = 0.99


@dataclass(frozen=True)
class Rendering:
    """How a file becomes RGB: its bands, and for each the value that becomes black and the one that becomes white.

    by: what chose the bands. alpha: a band that is a mask, or 0. scale: "none" leaves 8 bits as they are, "decibels"
    takes 10 log10 of a value first. lows, highs: one a band; empty for "none".
    """

    bands: tuple[int, ...]
    by: str
    alpha: int
    scale: Literal["none", "linear", "decibels"]
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()

    @property
    def words(self) -> str:
        """For people: bands 4,3,2 (as asked); 412 to 2,380, ..."""
        limits = ", ".join(f"{low:,.6g} to {high:,.6g}" for low, high in zip(self.lows, self.highs, strict=True))
        unit = " dB" if self.scale == "decibels" else ""
        bands = ",".join(map(str, self.bands))
        return f"bands {bands} ({self.by}), " + (f"stretched from {limits}{unit}" if limits else "values as they are")


def valid_pixels(planes: Planes, nodata: tuple[float | None, ...]) -> Valid:
    """bool [B, H, W]: what is a measurement; not a file's "no data", nor NaN, nor infinite or absurd."""
    valid = np.ones(planes.shape, dtype=bool)
    if planes.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            valid &= np.abs(planes) < _LARGEST_VALUE  # False for NaN
    for band, value in enumerate(nodata):
        if value is not None and np.isfinite(value):
            valid[band] &= planes[band] != value
    return valid


def is_mask(alpha: NDArray[Any]) -> bool:
    """Whether a band that calls itself alpha is one: nearly all of it nothing or all, and some of it all."""
    if not alpha.size:
        return False
    top = alpha.max()
    return bool(top > 0) and float(np.isin(alpha, (0, top)).mean()) >= _MASK_SHARE


def choose_rendering(
    plan: BandPlan, alpha: int, planes: Planes, valid: Valid, reading: Reading, bits: int = 8
) -> Rendering:
    """The rendering of a file, by a sample of its values. bits: that 8 of them stand for, where they are fewer.

    alpha: the band that was found to be a mask, or 0. planes, valid: [B, H, W] of the plan's bands.
    """
    method, limits = reading.method, reading.limits
    if len(planes) > 1 and planes.dtype.kind == "u":  # beside a scene's edge, sensors deliver zeros, and few say so
        valid = valid & planes.any(axis=0)
    if method == "auto" and planes.dtype == np.uint8 and bits < 8:
        return _fixed(plan, alpha, "linear", (0.0, float(2**bits - 1)))
    if method == "none" or (method == "auto" and planes.dtype == np.uint8):
        return Rendering(plan.bands, plan.by, alpha, "none")
    if method == "range" and limits is not None:
        return _fixed(plan, alpha, "linear", limits)
    scale: Literal["linear", "decibels"] = "linear"
    if method == "db":
        seen = planes[valid]
        if not seen.size or float((seen > 0).mean()) > 0.5:  # else they are decibels already
            planes, valid, scale = _decibels(planes), valid & (planes > 0), "decibels"
        if limits is not None:
            return _fixed(plan, alpha, scale, limits)
        limits = None
    found = [_limits(plane[ok], limits or _USUAL_PERCENTILES) for plane, ok in zip(planes, valid, strict=True)]
    return Rendering(
        plan.bands, plan.by, alpha, scale, tuple(low for low, _ in found), tuple(high for _, high in found)
    )


def render(planes: Planes, valid: Valid, rendering: Rendering) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]; what is not valid is black. planes, valid: [B, H, W] of the rendering's bands."""
    pixels = np.empty((*planes.shape[1:], 3), dtype=np.uint8)
    by_table = planes.dtype.kind in "ui" and planes.dtype.itemsize <= 2
    for band, plane in enumerate(planes):
        pixels[..., band] = (_by_table if by_table else _stretched)(plane, band, rendering)
    if len(planes) == 1:
        pixels[..., 1:] = pixels[..., :1]
    if not valid.all():
        # An integer that stands for "no data" in one band alone is a dark pixel's value: nothing is missing there.
        seen = valid if planes.dtype.kind == "f" else valid.any(axis=0, keepdims=True)
        np.copyto(pixels, 0, where=np.logical_not(seen).transpose(1, 2, 0))
    return pixels


def _fixed(plan: BandPlan, alpha: int, scale: Literal["linear", "decibels"], limits: tuple[float, float]) -> Rendering:
    count = len(plan.bands)
    return Rendering(plan.bands, plan.by, alpha, scale, (limits[0],) * count, (limits[1],) * count)


def _limits(values: NDArray[Any], percentiles: tuple[float, float]) -> tuple[float, float]:
    """Values that become black and white. Those of the file itself, so that no outlier has a say in them."""
    if not values.size:
        return 0.0, 1.0
    low = float(np.percentile(values, percentiles[0], method="lower"))
    high = float(np.percentile(values, percentiles[1], method="higher"))
    if low == high:
        low, high = float(values.min()), float(values.max())
    return low, high


def _by_table(plane: NDArray[Any], band: int, rendering: Rendering) -> NDArray[np.uint8]:
    if rendering.scale == "none" and plane.dtype == np.uint8:
        return plane
    return _table(plane.dtype.str, band, rendering).take(plane.view(f"u{plane.dtype.itemsize}"))


@lru_cache(maxsize=64)
def _table(dtype: str, band: int, rendering: Rendering) -> NDArray[np.uint8]:
    """What each of 256 or 65,536 values becomes, stretched once; -1 stands last, as 65,535 does."""
    kind = np.iinfo(np.dtype(dtype))
    return np.roll(_stretched(np.arange(kind.min, kind.max + 1), band, rendering), kind.min)


def _stretched(plane: NDArray[Any], band: int, rendering: Rendering) -> NDArray[np.uint8]:
    values: Values = plane.astype(np.float64 if plane.dtype.itemsize > 4 else np.float32)
    if rendering.scale == "none":
        return _bytes(values)
    if rendering.scale == "decibels":
        values = _decibels(values)
    low, high = rendering.lows[band], rendering.highs[band]
    with np.errstate(invalid="ignore", over="ignore"):
        if low == high:  # one value alone: neither black nor white, but for what is outside
            return _bytes(127.0 + 255.0 * np.sign(values - low))
        return _bytes((values - low) * (255 / (high - low)))


def _bytes(values: Values) -> NDArray[np.uint8]:
    finite: Values = np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0)
    return finite.clip(0, 255).round().astype(np.uint8)


def _decibels(values: NDArray[Any]) -> Values:
    """10 log10; what is not positive has none (NaN or -inf)."""
    exact = values.astype(np.float64 if values.dtype.itemsize > 4 else np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        decibels: Values = 10 * np.log10(exact)
    return decibels
