"""What a result is a result of: its stamp, and the guards against numbers that would mislead (method, section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.datasets.same_caption import caption_classes, caption_key
from cmpagl_core.errors import DataError, GuardError
from cmpagl_core.evaluation.recall import Matches
from cmpagl_core.files import canonical_json, sha256_text
from cmpagl_core.ranking.rerank import Step
from cmpagl_core.runs import Seen

Protocol = Literal["rsitr", "duplicate-aware"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)

_CAPTION_DIGITS = 16  # 64 bits of a hash: no two of a million captions are taken for one
_COMPARED = ("protocol", "ties", "dataset", "split", "split_sha256", "images", "captions")


@dataclass(frozen=True)
class Overlap:
    """What the images that a model was trained on share with the ones it is tested on."""

    trained_on: str
    images: int  # of the tested ones
    captions: int | None  # of the tested ones, alike in lower case without punctuation; None: not counted
    tested_images: int
    tested_captions: int
    chosen_on: int = 0  # tested images that the model's epoch and re-ranking were chosen on

    def sentences(self, model: str) -> tuple[str, ...]:
        """For people, to stand under a table."""
        found = []
        if self.images or self.captions:
            shared = f"{self.images:,} of {self.tested_images:,} images"
            if self.captions is not None:
                shared += f" and {self.captions:,} of {self.tested_captions:,} captions"
            found.append(f"trained on {self.trained_on}, which shares {shared} with what is tested")
        if self.chosen_on:
            part = f"{self.chosen_on:,} of these {self.tested_images:,} images"
            where = "this very split" if self.chosen_on == self.tested_images else part
            found.append(f"{model} was chosen on {where}, so these recalls flatter it")
        return tuple(found)


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
    rerank: dict[str, tuple[Step, ...]] = field(default_factory=dict)  # by stage: its re-rankings with parameters
    selection_sha256: str = ""  # of the split that those were chosen on
    itm_k: int | None = None  # None: no ITM; 0: every pair was scored
    overlap: Overlap | None = None  # None: nothing shared, or the training images are not known
    ties: Literal["expectation"] = "expectation"
    code: str = ""


def differences(stamps: Mapping[str, Stamp]) -> list[str]:
    """In words, what keeps named results out of one column; empty when nothing does."""
    found = []
    for compared in _COMPARED:
        values = {name: str(getattr(stamp, compared)) for name, stamp in stamps.items()}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{value[:16]} ({name})" for name, value in values.items())
            found.append(f"{compared.replace('_', ' ')} is {shown}")
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


def seen_of(train: DataSplit, selection: DataSplit) -> Seen:
    """What a run keeps of the splits that it was trained and chosen on."""
    return Seen(
        train_images=frozenset(train.image_sha256) - {""},
        train_captions=frozenset(_caption_hash(text) for text in train.captions),
        selection_images=frozenset(selection.image_sha256) - {""},
    )


def find_overlap(seen: Seen, trained_on: str, tested: DataSplit) -> Overlap | None:
    """What the images that a model has seen and the tested ones share; None when nothing worth a word.

    trained_on: the data set's name. Within one data set common captions are left out of the count, since its scenes
    share phrases by nature.
    """
    images = sum(image in seen.train_images for image in tested.image_sha256)
    chosen_on = sum(image in seen.selection_images for image in tested.image_sha256)
    captions = None
    if tested.dataset != trained_on:
        captions = sum(_caption_hash(text) in seen.train_captions for text in tested.captions)
    if not images and not captions and not chosen_on:
        return None
    return Overlap(trained_on, images, captions, len(tested), len(tested.captions), chosen_on)


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


def _caption_hash(text: str) -> str:
    return sha256_text(caption_key(text))[:_CAPTION_DIGITS]
