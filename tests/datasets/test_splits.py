"""Seeded splits depend on keys and seed alone; models are never chosen on test."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmpagl_core.datasets.prepared import CAPTION_COLUMNS, IMAGE_COLUMNS, PreparedDataset
from cmpagl_core.datasets.splits import seeded_split, selection_splits
from cmpagl_core.datasets.writing import Provenance, write_prepared
from cmpagl_core.errors import DataError, GuardError, UsageError
from cmpagl_core.files import FileStamp, write_text
from cmpagl_core.recipe_data import SelectionPart

THIRDS = {"train": 0.8, "val": 0.1, "test": 0.1}
KEYS = st.lists(st.text(max_size=6), unique=True, max_size=60)


def prepared(root: Path, splits: list[str], contents: list[str] | None = None) -> PreparedDataset:
    """One image and one caption for each entry; `contents` are the bytes of each."""
    names = [f"i{row:03d}" for row in range(len(splits))]
    images = []
    for name, split, content in zip(names, splits, contents or names, strict=True):
        write_text(root / f"{name}.png", content)
        mark = FileStamp.of(root / f"{name}.png")
        images.append((name, f"{name}.png", split, 4, 4, mark.size, mark.mtime_ns, mark.sha256, ""))
    captions = [(f"{name}#0", name, f"caption of {name}") for name in names]
    return write_prepared(
        root,
        pd.DataFrame(images, columns=IMAGE_COLUMNS),
        pd.DataFrame(captions, columns=CAPTION_COLUMNS),
        Provenance("toy"),
    )


@given(keys=KEYS, seed=st.integers(0, 5), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_seeded_split_ignores_the_order_of_its_keys(keys: list[str], seed: int, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(keys))
    assert seeded_split(shuffled, THIRDS, seed) == seeded_split(keys, THIRDS, seed)


@given(keys=KEYS, seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_seeded_split_gives_every_key_one_split_in_proportion(keys: list[str], seed: int) -> None:
    given_split = seeded_split(keys, THIRDS, seed)
    sizes = {name: list(given_split.values()).count(name) for name in THIRDS}
    assert set(given_split) == set(keys)
    if len(keys) >= 3:
        assert all(abs(sizes[name] - len(keys) * THIRDS[name]) <= 2 for name in THIRDS)
        assert all(sizes.values())


def test_the_seed_chooses_the_split() -> None:
    keys = [str(number) for number in range(100)]
    assert seeded_split(keys, THIRDS, 0) != seeded_split(keys, THIRDS, 1)


def test_a_seeded_split_never_changes_between_versions() -> None:
    """Published numbers hang on it."""
    given_split = seeded_split([f"airport_{number}" for number in range(20)], THIRDS, 0)
    assert sorted(key for key, name in given_split.items() if name == "val") == ["airport_16", "airport_5"]


@pytest.mark.parametrize("fractions", [{"a": 0.5, "b": 0.6}, {"a": 1.0, "b": 0.0}, {"a": float("nan")}, {}])
def test_fractions_that_are_none_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be positive and sum to 1"):
        seeded_split(["x"], fractions, 0)


def test_choosing_on_test_is_refused(tmp_path: Path) -> None:
    data = prepared(tmp_path, ["train", "val", "test"])
    with pytest.raises(GuardError, match="choosing models or gammas on the test split"):
        selection_splits(data, SelectionPart(split="test"))


def test_selection_on_val_takes_the_two_splits(tmp_path: Path) -> None:
    train, selection = selection_splits(prepared(tmp_path, ["train", "val", "test"]), SelectionPart())
    assert (train.image_ids, selection.image_ids) == (("i000",), ("i001",))


def test_selection_without_val_says_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no validation images.*set data\.selection\.split to train"):
        selection_splits(prepared(tmp_path, ["train", "test"]), SelectionPart())


def test_selection_from_train_shares_no_image_with_it(tmp_path: Path) -> None:
    contents = [f"image {row // 2}" for row in range(40)]  # each image twice
    data = prepared(tmp_path, ["train"] * 40 + ["test"], [*contents, "other"])
    train, selection = selection_splits(data, SelectionPart(split="train", fraction=0.2))
    assert len(train) == 32
    assert len(selection) == 8
    assert not set(train.image_sha256) & set(selection.image_sha256)
    assert not {"i040"} & {*train.image_ids, *selection.image_ids}


def test_selection_from_a_single_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few images"):
        selection_splits(prepared(tmp_path, ["train"]), SelectionPart(split="train"))
