"""Seeded splits by image, and the selection split on which models and gammas are chosen (section 5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cmpagl_core.datasets.prepared import DataSplit, PreparedDataset
from cmpagl_core.errors import DataError, GuardError, UsageError
from cmpagl_core.files import sha256_text
from cmpagl_core.recipe_data import SelectionPart


def seeded_split(keys: Iterable[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Assign every key to a split: {key: split}.

    Independent of the keys' order, the platform and library versions: keys are ranked by a hash of (seed, key) and cut
    by `fractions`. Repeated keys count once. Every split gets a key if there are enough. Raises UsageError if the
    fractions are not positive or do not sum to 1.
    """
    if any(not fraction > 0 for fraction in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise UsageError(f"split fractions {dict(fractions)} must be positive and sum to 1")
    ranked = sorted(set(keys), key=lambda key: (sha256_text(f"{seed}:{key}"), key))
    sizes = _apportion(len(ranked), list(fractions.values()))
    given: dict[str, str] = {}
    start = 0
    for name, size in zip(fractions, sizes, strict=True):
        given.update((key, name) for key in ranked[start : start + size])
        start += size
    return given


def selection_splits(
    prepared: PreparedDataset, selection: SelectionPart, check_files: bool = True
) -> tuple[DataSplit, DataSplit]:
    """The training and selection splits, without a common image: (train, selection).

    Split "val": the train and validation splits. Split "train": a random share of train's distinct images is held out.
    Raises GuardError for "test", DataError for an empty split.
    """
    if selection.split == "test":
        raise GuardError(
            "choosing models or gammas on the test split would make its recalls meaningless",
            hint="set data.selection.split to val, or to train with a fraction",
        )
    train = prepared.split("train", check_files)
    if selection.split == "val":
        if not (prepared.images["split"] == "val").any():
            raise DataError(
                f"{prepared.root}: {prepared.name} has no validation images to choose models on",
                hint="set data.selection.split to train, which holds out a share of train",
            )
        return train, prepared.split("val", check_files)
    fractions = {"train": 1 - selection.fraction, "selection": selection.fraction}
    given = seeded_split(train.image_sha256, fractions, selection.seed)
    rows = _rows_by_split([given[key] for key in train.image_sha256])
    if len(rows) < len(fractions):
        raise DataError(f"{prepared.root}: the train split has too few images to hold some out for choosing models")
    return train.subset(rows["train"], name="train"), train.subset(rows["selection"], name="selection")


def _rows_by_split(names: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return rows


def _apportion(total: int, fractions: list[float]) -> list[int]:
    """Integers close to total * fractions that sum to total; none is 0 if total allows it."""
    sizes = [int(total * fraction) for fraction in fractions]
    remainders = [total * fraction - size for fraction, size in zip(fractions, sizes, strict=True)]
    for part in sorted(range(len(sizes)), key=lambda part: -remainders[part])[: total - sum(sizes)]:
        sizes[part] += 1
    if total >= len(sizes):
        while 0 in sizes:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[sizes.index(0)] += 1
    return sizes
