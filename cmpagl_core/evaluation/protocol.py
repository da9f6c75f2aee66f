"""What a result is a result of: its stamp, and the guards against numbers that would mislead (method, section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.datasets.same_caption import caption_classes, caption_key
from cmpagl_core.errors import DataError, GuardError
from cmpagl_core.evaluation.recall import Matches
from cmpagl_core.files import canonical_json
from cmpagl_core.ranking.chain import Gammas

Protocol = Literal["rsitr", "duplicate-aware"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

_COMPARED = ("protocol", "ties", "dataset", "split", "split_sha256", "images", "captions")


@dataclass(frozen=True)
class Overlap:
    """What the pictures that a model was trained on share with the ones it is tested on."""

    trained_on: str
    pictures: int  # of the tested ones
    captions: int  # of the tested ones, spelled alike in lower case without punctuation
    tested_pictures: int
    tested_captions: int

    def sentence(self) -> str:
        """For people, to stand under a table."""
        return (
            f"trained on {self.trained_on}, which shares {self.pictures:,} of {self.tested_pictures:,} pictures and "
            f"{self.captions:,} of {self.tested_captions:,} captions with what is tested"
        )


@dataclass(frozen=True)
class Stamp:
    """Everything that decides whether two numbers may stand in one column. Hashes are hex digests of SHA-256."""

    protocol: Protocol
    dataset: str
    split: str
    split_sha256: str
    manifest_sha256: str
    images: int
    captions: int
    model: str
    model_sha256: str
    stages: tuple[str, ...]
    smr: Gammas | None = None
    dual_softmax: float | None = None  # its temperature
    sinkhorn: float | None = None  # its temperature
    itm_k: int | None = None  # None: no ITM; 0: every pair was scored
    overlap: Overlap | None = None  # None: nothing shared, or the training pictures are not known
    ties: Literal["expectation"] = "expectation"
    code: str = ""


def differences(stamps: Mapping[str, Stamp]) -> list[str]:
    """In words, what keeps named results out of one column; empty when nothing does."""
    found = []
    for field in _COMPARED:
        values = {name: str(getattr(stamp, field)) for name, stamp in stamps.items()}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{value[:16]} ({name})" for name, value in values.items())
            found.append(f"{field.replace('_', ' ')} is {shown}")
    return found


def require_one_column(stamps: Mapping[str, Stamp], mix: bool = False) -> list[str]:
    """Refuse to set results of different data or protocols side by side, unless told to `mix`; returns what differs.

    Raises GuardError.
    """
    found = differences(stamps)
    if found and not mix:
        raise GuardError(
            f"these results must not stand in one column: {'; '.join(found)}",
            hint="evaluate both alike, or pass --mix to compare them nevertheless",
        )
    return found


def require_not_test(split: str, what: str) -> None:
    """Refuse to choose anything on a test split, or on all splits together. Raises GuardError."""
    if split in ("test", "all"):
        where = "the test split" if split == "test" else "all splits, the test split among them,"
        raise GuardError(
            f"choosing {what} on {where} would make its recalls meaningless",
            hint="choose on val, or on the run's selection split",
        )


def matches_of(protocol: Protocol, caption_image: NDArray[np.int64], images: int, captions: Sequence[str]) -> Matches:
    """Who answers whom: own captions (`rsitr`), or identical ones too (`duplicate-aware`)."""
    if protocol == "rsitr":
        return Matches.own(caption_image, images)
    return Matches.identical(caption_image, images, caption_classes(captions))


def find_overlap(train: DataSplit, tested: DataSplit, same_dataset: bool) -> Overlap | None:
    """What training and tested pictures share; None when nothing worth a word.

    same_dataset: common captions are then left out of the count, since scenes of one set share phrases by nature.
    """
    pictures = set(train.picture_sha256) - {""}
    shared_pictures = sum(picture in pictures for picture in tested.picture_sha256)
    known = set() if same_dataset else {caption_key(text) for text in train.captions}
    shared_captions = sum(caption_key(text) in known for text in tested.captions)
    if not shared_pictures and not shared_captions:
        return None
    return Overlap(train.dataset, shared_pictures, shared_captions, len(tested), len(tested.captions))


def written_overlap(overlap: Overlap | None) -> str:
    """As a feature file keeps it; empty where there is none."""
    return "" if overlap is None else canonical_json(asdict(overlap))


def read_overlap(text: str) -> Overlap | None:
    """What `written_overlap` wrote. Raises DataError for anything else."""
    if not text:
        return None
    try:
        return TypeAdapter(Overlap).validate_json(text)
    except ValidationError as error:
        raise DataError(f"{text[:60]!r} does not say what was shared", hint="export the features again") from error
