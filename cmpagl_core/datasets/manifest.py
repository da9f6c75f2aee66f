"""The manifest of a prepared data set: its sources, its splits, and everything that was left out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cmpagl_core.errors import DataError, check_format
from cmpagl_core.files import canonical_json, read_json, sha256_text
from cmpagl_core.imagery.reading import AUTO, DEFAULT, Reading

FORMAT_VERSION: Literal[3] = 3
MANIFEST_FILE = "manifest.json"
IMAGES_FILE = "images.csv"
CAPTIONS_FILE = "captions.csv"
SPLITS = ("train", "val", "test")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitCounts(_Record):
    """Counts of one split; unique_captions are counted after normalising white space."""

    images: int
    captions: int
    unique_captions: int


class Source(_Record):
    """A source file or folder; sha256 is empty for a folder."""

    what: str
    path: str
    sha256: str = ""


class Dropped(_Record):
    """An entry of the annotations that the prepared data set lacks."""

    what: str
    why: str


class Manifest(_Record):
    """`manifest.json`; written last, so a folder that has one is complete."""

    format_version: Literal[3] = FORMAT_VERSION
    name: str
    made_at: str  # ISO 8601 in UTC
    source: str  # rsicd, rsitmd, ucm, sydney, folder, synthetic
    layout: str  # layout of the annotations
    protocol: str  # origin of the splits, in words
    complete: bool  # only known defects were left out
    counts: dict[str, SplitCounts]
    split_sha256: dict[str, str]  # of captions, in any order: equal for every layout of one split
    images_sha256: str  # of (image id, split, sha256 of the file), in any order
    files: dict[str, str]  # images.csv and captions.csv, by sha256
    sources: tuple[Source, ...]
    dropped: tuple[Dropped, ...] = ()
    bands: str = AUTO  # that are red, green and blue, and
    stretch: str = AUTO  # how their values become 8 bits, where an image is not a plain 8-bit one
    fingerprint: str  # of the arguments and the state of the sources: equal means up to date

    @property
    def sha256(self) -> str:
        """Identity of the content: the same images, read alike, captions and splits anywhere have the same hash."""
        content = {"splits": self.split_sha256, "images": self.images_sha256}
        read_as = {} if self.reading == DEFAULT else {"reading": self.reading.words}
        return sha256_text(canonical_json({**content, **read_as}))

    @property
    def reading(self) -> Reading:
        """How images are read. Raises UsageError where the manifest says what makes no sense."""
        return Reading(self.bands, self.stretch)


def read_manifest(folder: Path) -> Manifest:
    """Read and validate `manifest.json`. Raises DataError."""
    path = folder / MANIFEST_FILE
    content = read_json(path)
    version = content.get("format_version") if isinstance(content, dict) else None
    check_format(path, version, FORMAT_VERSION, "make the data set again with `cmpagl prepare`")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(key) for key in first["loc"])
        raise DataError(
            f"{path}: {place}: {first['msg']}", hint="make the data set again with `cmpagl prepare`"
        ) from error
