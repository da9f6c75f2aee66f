"""What is known of the public sets: their counts, their scenes, their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmpagl_core.datasets.published import PUBLISHED, UCM_CLASSES, recognise, ucm_number


@pytest.mark.parametrize(
    ("counts", "name"),
    [
        ({"train": 8734, "val": 1094, "test": 1093}, "rsicd"),
        ({"train": 9828, "test": 1093}, "rsicd"),
        ({"train": 4291, "test": 452}, "rsitmd"),
        ({"train": 3862, "val": 429, "test": 452}, "rsitmd"),
        ({"train": 1680, "val": 210, "test": 210}, "ucm"),
        ({"train": 1680, "test": 210}, "ucm"),
        ({"train": 497, "val": 58, "test": 58}, "sydney"),
    ],
)
def test_every_published_layout_is_recognised_by_its_counts(counts: dict[str, int], name: str) -> None:
    found = recognise(counts)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize(
    "counts", [{}, {"train": 8734, "val": 1094, "test": 1092}, {"train": 1680, "test": 210, "": 1}, {"test": 452}]
)
def test_other_counts_are_no_public_set(counts: dict[str, int]) -> None:
    assert recognise(counts) is None


@pytest.mark.parametrize(
    ("name", "stem", "scene"),
    [
        ("rsicd", "airport_1", "airport"),
        ("rsicd", "00001", ""),
        ("rsitmd", "storagetanks_4367", "storagetanks"),
        ("ucm", "1", "agricultural"),
        ("ucm", "100", "agricultural"),
        ("ucm", "101", "airplane"),
        ("ucm", "2100", "tenniscourt"),
        ("ucm", "2101", ""),
        ("ucm", "0", ""),
        ("ucm", "²", ""),
        ("ucm", "9" * 5000, ""),
        ("sydney", "5", ""),
    ],
)
def test_scenes_come_from_the_name(name: str, stem: str, scene: str) -> None:
    assert PUBLISHED[name].scene(stem) == scene


@pytest.mark.parametrize(
    ("image", "number"),
    [
        ("agricultural01.tif", "1"),
        ("agricultural00.tif", "100"),
        ("Images/airplane/airplane00.tif", "101"),
        ("tenniscourt99.tif", "2100"),
        ("airplane100.tif", None),
        ("1.tif", None),
        ("cat00.tif", None),
    ],
)
def test_first_names_of_ucm_have_their_numbers(image: str, number: str | None) -> None:
    assert ucm_number(image) == number


def test_ucm_numbers_are_a_permutation() -> None:
    numbers = {ucm_number(f"{name}{place:02d}.tif") for name in UCM_CLASSES for place in range(100)}
    assert numbers == {str(number) for number in range(1, 2101)}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_where_to_get_names_the_folder_the_files_and_a_place(name: str) -> None:
    text = PUBLISHED[name].where_to_get(Path("data/raw") / name)
    assert str(Path("data/raw") / name) in text
    assert "https://github.com/" in text
    assert ".json" in text
