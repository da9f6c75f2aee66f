"""A prepared data set reads back what was written, and refuses files that do not belong together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmpagl_core.datasets.manifest import read_manifest
from cmpagl_core.datasets.prepared import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    DataSplit,
    PreparedDataset,
    captions_sha256,
    open_prepared,
)
from cmpagl_core.datasets.writing import Provenance, write_prepared
from cmpagl_core.errors import DataError, MismatchError
from cmpagl_core.files import FileStamp, write_text

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda text: text.strip())


def write(root: Path, images: Sequence[tuple[str, str]], captions: Sequence[tuple[str, str]]) -> PreparedDataset:
    """images: (id, split) pairs, of which the file holds the id; captions: (image id, text) pairs."""
    rows = []
    for name, split in images:
        path = root / f"{name}.jpg"
        write_text(path, name)
        mark = FileStamp.of(path)
        rows.append((name, path.name, split, 8, 8, mark.size, mark.mtime_ns, mark.sha256, ""))
    return write_prepared(
        root,
        pd.DataFrame(rows, columns=IMAGE_COLUMNS),
        pd.DataFrame([(f"c{row}", image, text) for row, (image, text) in enumerate(captions)], columns=CAPTION_COLUMNS),
        Provenance("toy"),
    )


def toy(root: Path) -> PreparedDataset:
    images = [("a", "train"), ("b", "train"), ("c", "test")]
    return write(root, images, [("a", "one"), ("a", "two"), ("b", "three"), ("c", "four"), ("c", "five")])


@given(texts=st.lists(TEXTS, min_size=1, max_size=6))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_captions_read_back_character_for_character(tmp_path: Path, texts: list[str]) -> None:
    captions = [("a", text) for text in [*texts, 'a "quoted", one', "two\nlines\r\n", "lone\rreturn", "🛩 é", "NA"]]
    prepared = write(tmp_path, [("a", "test")], captions)
    assert list(prepared.split("test").captions) == [text for _, text in captions]


def test_a_split_holds_its_own_images_and_captions(tmp_path: Path) -> None:
    split = toy(tmp_path).split("train")
    assert split.image_ids == ("a", "b")
    assert split.captions == ("one", "two", "three")
    assert split.caption_image.tolist() == [0, 0, 1]
    assert split.captions_of(0) == [0, 1]
    assert split.paths[0] == tmp_path / "a.jpg"


def test_all_is_the_union_of_the_splits(tmp_path: Path) -> None:
    prepared = toy(tmp_path)
    assert set(prepared.split("all").captions) == {
        text for name in ("train", "test") for text in prepared.split(name).captions
    }


def test_a_subset_keeps_each_image_with_its_captions(tmp_path: Path) -> None:
    subset = toy(tmp_path).split("all").subset([2, 0])
    assert subset.image_ids == ("c", "a")
    assert [(subset.image_ids[row], text) for row, text in zip(subset.caption_image, subset.captions, strict=True)] == [
        ("c", "four"),
        ("c", "five"),
        ("a", "one"),
        ("a", "two"),
    ]


def test_a_subset_of_all_rows_has_the_same_hash(tmp_path: Path) -> None:
    split = toy(tmp_path).split("all")
    assert split.subset([2, 1, 0]).sha256 == split.sha256


@pytest.mark.parametrize(("rows", "kind"), [([0, 0], ValueError), ([3], IndexError), ([-1], IndexError)])
def test_a_subset_refuses_rows_that_are_twice_or_outside(
    tmp_path: Path, rows: list[int], kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        toy(tmp_path).split("all").subset(rows)


@given(pairs=st.lists(st.tuples(st.text(max_size=5), TEXTS), max_size=8), data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_split_hash_ignores_order_and_spacing_only(pairs: list[tuple[str, str]], data: st.DataObject) -> None:
    def digest(some: Sequence[tuple[str, str]]) -> str:
        return captions_sha256([image for image, _ in some], [text for _, text in some])

    shuffled = data.draw(st.permutations(pairs))
    assert digest([(image, f" {text}\n ") for image, text in shuffled]) == digest(pairs)
    assert digest([*pairs, ("x", "one more")]) != digest(pairs)


def test_manifest_hashes_and_splits_agree(tmp_path: Path) -> None:
    prepared = toy(tmp_path)
    assert prepared.manifest.split_sha256["train"] == prepared.split("train").sha256
    assert prepared.manifest.counts["train"].images == 2
    assert prepared.manifest.counts["train"].captions == 3


def test_equal_content_in_other_folders_has_the_same_identity(tmp_path: Path) -> None:
    first, second = toy(tmp_path / "here"), toy(tmp_path / "there")
    assert first.manifest.sha256 == second.manifest.sha256
    other = write(tmp_path / "other", [("a", "train")], [("a", "one")])
    assert other.manifest.sha256 != first.manifest.sha256


def test_an_empty_split_says_where_there_are_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val split of toy has no images; there are images in train, test"):
        toy(tmp_path).split("val")


def test_an_unknown_split_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'dev'; choose from train, val, test and all"):
        toy(tmp_path).split("dev")


def test_a_table_changed_by_hand_is_refused(tmp_path: Path) -> None:
    toy(tmp_path)
    path = tmp_path / "captions.csv"
    path.write_text(path.read_text().replace("three", "3"))
    with pytest.raises(DataError, match=r"captions\.csv was changed after it was written"):
        open_prepared(tmp_path)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    toy(tmp_path)
    (tmp_path / "images.csv").unlink()
    with pytest.raises(DataError, match=r"images\.csv is missing"):
        open_prepared(tmp_path)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json does not exist"):
        open_prepared(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format_version": 1}, "format_version is 1, this cmpagl reads 3; make the data set again"),
        ({"counts": {"train": 3}}, r"counts\.train"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    toy(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=sentence):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"format_version": NaN}', "\x00"])
def test_a_hostile_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("images", "captions", "sentence"),
    [
        ([("a", "train"), ("a", "test")], [], "image_id 'a' is empty or duplicate"),
        ([("a", "dev")], [], "split 'dev' is not a split"),
        ([("a", "train")], [("b", "text")], "image_id 'b' is not in images.csv"),
        ([("a", "train")], [("a", "  ")], "text '  ' is blank"),
    ],
)
def test_tables_that_make_no_sense_are_refused(
    tmp_path: Path, images: list[tuple[str, str]], captions: list[tuple[str, str]], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        write(tmp_path, images, captions)


def test_a_data_split_cannot_be_changed(tmp_path: Path) -> None:
    split: DataSplit = toy(tmp_path).split("train")
    with pytest.raises(AttributeError):
        split.name = "test"  # type: ignore[misc]


def test_an_image_that_was_swapped_after_it_was_prepared_is_refused(tmp_path: Path) -> None:
    prepared = toy(tmp_path)
    (tmp_path / "b.jpg").write_text("B")  # as many bytes, other content
    with pytest.raises(MismatchError, match=r"b\.jpg has changed since toy was prepared; restore it, or run"):
        open_prepared(tmp_path).split("train")
    with pytest.raises(MismatchError, match="restore it"):
        prepared.split("all")
    assert prepared.split("test").image_ids == ("c",)
    assert prepared.split("train", check_files=False).sha256 == prepared.manifest.split_sha256["train"]
    (tmp_path / "b.jpg").write_text("b")  # another time, the same content
    assert prepared.split("train").image_ids == ("a", "b")
    (tmp_path / "c.jpg").unlink()
    with pytest.raises(DataError, match=r"c\.jpg cannot be read"):
        prepared.split("test")
