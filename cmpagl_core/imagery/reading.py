"""Reading: the bands and stretch that a user chooses, the same for all images of an index or data set."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cmpagl_core.errors import UsageError

PRESETS = ("sentinel-2", "landsat-8", "planetscope", "naip")
AUTO = "auto"

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_STRETCH = re.compile(rf"(percentile|range|db):({_NUMBER}),({_NUMBER})")
_BANDS = re.compile(r"[1-9]\d{0,3}(?:,[1-9]\d{0,3},[1-9]\d{0,3})?")


@dataclass(frozen=True)
class Reading:
    """Which bands are red, green and blue, and how their values become 8 bits.

    bands: auto, one number (grey), three numbers from 1 (red, green, blue) or a preset. stretch: auto (none for 8 bits,
    percentiles 2 to 98 for others), none, percentile or percentile:LOW,HIGH, range:LOW,HIGH, db or db:LOW,HIGH.
    Raises UsageError for anything else.
    """

    bands: str = AUTO
    stretch: str = AUTO

    def __post_init__(self) -> None:
        if self.bands not in (AUTO, *PRESETS) and not _BANDS.fullmatch(self.bands):
            raise UsageError(
                f"--bands {self.bands!r} is not a choice of bands",
                hint=f"write three numbers (4,3,2), one for grey, or one of {', '.join(PRESETS)}",
            )
        if self.stretch not in (AUTO, "none", "percentile", "db"):
            self._check_limits()

    def _check_limits(self) -> None:
        found = _STRETCH.fullmatch(self.stretch)
        if found is None:
            hint = "write auto, none, percentile:2,98, range:0,3000, db or db:-25,0"
            raise UsageError(f"--stretch {self.stretch!r} is unknown", hint=hint)
        low, high = float(found[2]), float(found[3])
        if not low < high or (found[1] == "percentile" and not 0 <= low < high <= 100):
            raise UsageError(
                f"--stretch {self.stretch!r} has invalid limits",
                hint="write the lower one first; percentiles end at 100",
            )

    @property
    def numbers(self) -> tuple[int, ...]:
        """The bands that are named by number, from 1; none for auto and presets."""
        return tuple(int(word) for word in self.bands.split(",")) if self.bands[0].isdigit() else ()

    @property
    def preset(self) -> str:
        """The preset; empty where there is none."""
        return self.bands if self.bands in PRESETS else ""

    @property
    def limits(self) -> tuple[float, float] | None:
        """The two numbers of a stretch, where it has them."""
        found = _STRETCH.fullmatch(self.stretch)
        return (float(found[2]), float(found[3])) if found is not None else None

    @property
    def method(self) -> str:
        """auto, none, percentile, range or db."""
        return self.stretch.partition(":")[0]

    @property
    def words(self) -> str:
        """What artefacts say of it; part of the fingerprint of what was encoded."""
        return f"bands {self.bands}, stretch {self.stretch}"


DEFAULT = Reading()
