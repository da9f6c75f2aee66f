"""Annotated names find their images whatever the extension, the case and the folder; doubt is never guessed away."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmpagl_core.datasets.annotations import AnnotatedImage
from cmpagl_core.datasets.matching import ImageIndex, image_ids
from cmpagl_core.datasets.published import ucm_number

ROOT = Path("/data/images")


def image(name: str) -> AnnotatedImage:
    return AnnotatedImage(name, ("x",), "train", "")


def found(names: list[str], files: list[str], asked: str) -> list[str]:
    index = ImageIndex.of(ROOT, [ROOT / file for file in files], [image(name) for name in names])
    return [path.relative_to(ROOT).as_posix() for path in index.find(image(asked))]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("1.tif", "1.jpg"),
        ("1.tif", "deep/er/1.png"),
        ("Airport_1.JPG", "airport_1.jpg"),
        ("images/rsicd/1.jpg", "1.jpg"),
        ("C:\\data\\1.jpg", "1.jpg"),
        ("../../1.jpg", "1.jpg"),
        ("v1.2.tif", "v1.2.jpg"),
    ],
)
def test_the_stem_finds_the_image(name: str, file: str) -> None:
    assert found([name], [file, "other.jpg"], name) == [file]


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("1.tif", ["1.jpg", "1.tif"], ["1.tif"]),
        ("a/1.tif", ["a/1.jpg", "b/1.jpg"], ["a/1.jpg"]),
        ("Plane.jpg", ["plane.jpg", "Plane.jpg"], ["Plane.jpg"]),
        ("1.tif", ["1.jpg", "1.png"], ["1.jpg", "1.png"]),
        ("1.tif", ["a/1.tif", "b/1.tif"], ["a/1.tif", "b/1.tif"]),
        ("2.tif", ["1.jpg"], []),
    ],
)
def test_of_several_images_the_nearest_is_meant_and_doubt_stays(
    name: str, files: list[str], expected: list[str]
) -> None:
    assert found([name], files, name) == expected


def test_where_names_share_a_stem_the_folders_must_agree() -> None:
    names = ["port/1.jpg", "sea/1.jpg"]
    assert found(names, ["port/1.png", "sea/1.png"], "sea/1.jpg") == ["sea/1.png"]
    assert found(names, ["port/1.png"], "sea/1.jpg") == []
    assert found(["set/port/1.jpg", "set/sea/1.jpg"], ["port/1.png", "sea/1.png"], "set/sea/1.jpg") == ["sea/1.png"]


def test_first_names_of_ucm_are_found_by_their_numbers() -> None:
    index = ImageIndex.of(ROOT, [ROOT / "airplane/airplane00.tif"], [image("101.tif")], ucm_number)
    assert index.find(image("101.tif")) == [ROOT / "airplane/airplane00.tif"]


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["a/1.jpg", "b/2.jpg"], ["1", "2"]),
        (["a/1.jpg", "b/1.jpg"], ["a/1", "b/1"]),
        (["a/1.jpg", "a/1.png"], ["a/1.jpg", "a/1.png"]),
        (["1.jpg", "1.jpg"], ["1", "1"]),
        (["X.jpg", "x.png"], ["X.jpg", "x.png"]),
    ],
)
def test_ids_are_as_short_as_they_can_be(names: list[str], ids: list[str]) -> None:
    assert image_ids([image(name) for name in names]) == ids


@given(st.lists(st.text("abc/.", min_size=1, max_size=8).filter(lambda name: image(name).stem), max_size=12))
def test_different_names_have_different_ids(names: list[str]) -> None:
    images = [image(name) for name in names]
    by_id: dict[str, set[tuple[str, ...]]] = {}
    for one, image_id in zip(images, image_ids(images), strict=True):
        by_id.setdefault(image_id, set()).add(one.parts)
    assert all(len(parts) == 1 for parts in by_id.values())
