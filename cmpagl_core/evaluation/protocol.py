"""A result's stamp (data, model, protocol), and guards against misleading numbers (section 5)."""

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

_CAPTION_DIGITS = 16  # 64 bits of a hash: a million captions do not collide
_COMPARED = ("protocol", "ties", "dataset", "split", "split_sha256", "images", "captions")


@dataclass(frozen=True)
class Overlap:
    """Overlap between a model's training and test images."""

    trained_on: str
    images: int  # of the tested ones
    captions: int | None  # of the tested ones, compared in lower case without punctuation; None: not counted
    tested_images: int
    tested_captions: int
    chosen_on: int = 0  # tested images that are also in the model's selection split

    def sentences(self, model: str) -> tuple[str, ...]:
        """Sentences for people, to print under a table."""
        found = []
        if self.images or self.captions:
            shared = f"{self.images:,} of {self.tested_images:,} images"
            if self.captions is not None:
                shared += f" and {self.captions:,} of {self.tested_captions:,} captions"
            found.append(f"trained on {self.trained_on}, which shares {shared} with the test set")
        if self.chosen_on:
            part = f"{self.chosen_on:,} of these {self.tested_images:,} images"
            where = "this split" if self.chosen_on == self.tested_images else part
            found.append(f"{model} was chosen on {where}, so these recalls are biased upwards")
        return tuple(found)


@dataclass(frozen=True)
class Stamp:
    """Everything that decides whether two numbers are comparable. Hashes are hex digests of SHA-256."""

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
    """Differences in words that make named results incomparable; empty if there are none."""
    found = []
    for compared in _COMPARED:
        values = {name: str(getattr(stamp, compared)) for name, stamp in stamps.items()}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{value[:16]} ({name})" for name, value in values.items())
            found.append(f"{compared.replace('_', ' ')} is {shown}")
    return found


def require_one_column(stamps: Mapping[str, Stamp], mix: bool = False) -> list[str]:
    """Refuse to compare results of different data or protocols, unless `mix`; returns the differences.

    Raises GuardError.
    """
    found = differences(stamps)
    if found and not mix:
        raise GuardError(
            f"these results are not comparable: {'; '.join(found)}",
            hint="evaluate both in the same way, or pass --mix to compare them anyway",
        )
    return found


def require_not_test(split: str, what: str) -> None:
    """Refuse to choose anything on a test split, or on all splits together. Raises GuardError."""
    if split in ("test", "all"):
        where = "the test split" if split == "test" else "all splits, which include the test split,"
        raise GuardError(
            f"choosing {what} on {where} would make its recalls meaningless",
            hint="choose on val, or on the run's selection split",
        )


def matches_of(protocol: Protocol, caption_image: NDArray[np.int64], images: int, captions: Sequence[str]) -> Matches:
    """Which captions match which images: their own (`rsitr`), or identical ones too (`duplicate-aware`)."""
    if protocol == "rsitr":
        return Matches.own(caption_image, images)
    return Matches.identical(caption_image, images, caption_classes(captions))


def seen_of(train: DataSplit, selection: DataSplit) -> Seen:
    """What a run records of its training and selection splits."""
    return Seen(
        train_images=frozenset(train.image_sha256) - {""},
        train_captions=frozenset(_caption_hash(text) for text in train.captions),
        selection_images=frozenset(selection.image_sha256) - {""},
    )


def find_overlap(seen: Seen, trained_on: str, tested: DataSplit) -> Overlap | None:
    """Overlap between the images of a training and tested ones; None if there is none worth reporting.

    trained_on: the data set's name. Within one data set shared captions are not counted, since its scenes naturally
    share phrases.
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
    """Serialised for a feature file; empty without overlap."""
    return "" if overlap is None else canonical_json(asdict(overlap))


def read_overlap(text: str) -> Overlap | None:
    """Parses what `written_overlap` wrote. Raises DataError for anything else."""
    if not text:
        return None
    try:
        return TypeAdapter(Overlap).validate_json(text)
    except ValidationError as error:
        raise DataError(f"{text[:60]!r} is not a record of shared images", hint="export the features again") from error


def _caption_hash(text: str) -> str:
    return sha256_text(caption_key(text))[:_CAPTION_DIGITS]
