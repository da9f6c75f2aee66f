"""The input of `prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cmpagl_core.datasets.published import PUBLISHED
from cmpagl_core.errors import UsageError
from cmpagl_core.imagery.reading import AUTO, Reading

SourceName = Literal["rsicd", "rsitmd", "ucm", "sydney", "folder", "shards", "synthetic"]

DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)


@dataclass(frozen=True)
class PrepareRequest:
    """The user's request. Raises UsageError for options that do not apply to the source."""

    source: SourceName
    name: str = ""  # name of the data set; empty: the source's
    folder: Path | None = None  # of the user's images; source folder only
    shards: str | None = None  # source shards only: files, a folder or URLs
    images: Path | None = None  # folder or archive
    annotations: Path | None = None
    skip_missing: bool = False
    copy: bool = False
    seed: int = 0
    fractions: tuple[float, float, float] | None = None  # train, val, test; sources folder and shards only
    count: int | None = None  # scenes; source synthetic only
    image_size_px: int | None = None  # source synthetic only
    bands: str | None = None  # as Reading has it; sources folder and shards only
    stretch: str | None = None

    def __post_init__(self) -> None:
        if self.source == "folder" and self.folder is None:
            raise UsageError("no folder is given", hint="write `cmpagl prepare folder DIR`")
        if self.source == "shards" and self.shards is None:
            raise UsageError("no shards are given", hint="write `cmpagl prepare shards URL`")
        useless = {
            "DIR": self.folder is not None and self.source != "folder",
            "--images": self.images is not None and self.source not in PUBLISHED,
            "--annotations": self.annotations is not None and self.source in ("shards", "synthetic"),
            "--skip-missing": self.skip_missing and self.source == "synthetic",
            "--copy": self.copy and self.source in ("shards", "synthetic"),
            "--split": self.fractions is not None and self.source not in ("folder", "shards"),
            "--count": self.count is not None and self.source != "synthetic",
            "--bands": self.bands is not None and self.source not in ("folder", "shards"),
            "--stretch": self.stretch is not None and self.source not in ("folder", "shards"),
            "--size": self.image_size_px is not None and self.source != "synthetic",
        }
        wrong = [option for option, given in useless.items() if given]
        if wrong:
            raise UsageError(f"`prepare {self.source}` does not take {' and '.join(wrong)}")
        _ = self.reading  # refused before anything is read

    @property
    def reading(self) -> Reading:
        """How images are read. Raises UsageError for bands or a stretch that are not known."""
        return Reading(self.bands or AUTO, self.stretch or AUTO)


def parse_fractions(text: str) -> tuple[float, float, float]:
    """Shares of train, val and test from "0.8,0.1,0.1"; a share may be 0. Raises UsageError."""
    words = text.replace("/", ",").split(",")
    try:
        train, val, test = (float(word) for word in words)
    except ValueError as error:
        raise UsageError(f"--split {text!r} is not three numbers", hint="write for instance 0.8,0.1,0.1") from error
    if not all(0 <= share <= 1 for share in (train, val, test)) or abs(train + val + test - 1) > 1e-6:
        raise UsageError(f"--split {text!r} does not sum to 1", hint="write for instance 0.8,0.1,0.1")
    return train, val, test
