"""The eight views form the symmetry group of the square, and captions that name a direction keep theirs."""

from __future__ import annotations

import pytest
import torch

from cmpagl_core.datasets.augment import VIEWS, allowed_views, d4_transform, names_axis, names_direction

SQUARE = torch.arange(18.0).reshape(2, 3, 3)


def test_view_0_is_the_image_itself() -> None:
    assert torch.equal(d4_transform(SQUARE, 0), SQUARE)


def test_the_eight_views_differ() -> None:
    assert len({tuple(d4_transform(SQUARE, view).flatten().tolist()) for view in range(VIEWS)}) == VIEWS


def test_views_after_views_are_views() -> None:
    views = {tuple(d4_transform(SQUARE, view).flatten().tolist()) for view in range(VIEWS)}
    for first in range(VIEWS):
        for second in range(VIEWS):
            assert tuple(d4_transform(d4_transform(SQUARE, first), second).flatten().tolist()) in views


def test_views_match_flips_written_out_by_pixel() -> None:
    image = torch.tensor([[1, 2], [3, 4]])
    assert d4_transform(image, 1).tolist() == [[2, 4], [1, 3]]  # a quarter turn counter-clockwise
    assert d4_transform(image, 2).tolist() == [[4, 3], [2, 1]]
    assert d4_transform(image, 4).tolist() == [[2, 1], [4, 3]]  # left to right
    assert d4_transform(image, 6).tolist() == [[3, 4], [1, 2]]  # top to bottom


@pytest.mark.parametrize("view", [-1, 8])
def test_there_is_no_ninth_view(view: int) -> None:
    with pytest.raises(ValueError, match=f"view must be 0 to 7, not {view}"):
        d4_transform(SQUARE, view)


@pytest.mark.parametrize(
    "caption",
    [
        "a lawn in the lower right corner .",
        "Trees on the LEFT-hand side.",
        "the northwest part is water",
        "a north-eastern wind turbine",
        "the rightmost plane",
        "boats below the bridge",
        "cars go clockwise around it",
        "counter-clockwise traffic",
    ],
)
def test_captions_that_name_a_direction_are_not_turned(caption: str) -> None:
    assert names_direction(caption)
    assert allowed_views("d4", caption) == (0,)


@pytest.mark.parametrize(
    "caption",
    [
        "bright roofs and brighter lawns",
        "two roads meet at right angles",
        "a downtown with upscale houses",
        "many planes are parked next to a long building",
        "",
    ],
)
def test_other_captions_may_be_turned(caption: str) -> None:
    assert not names_direction(caption)
    assert allowed_views("d4", caption) == tuple(range(8))


def test_captions_that_name_an_axis_are_flipped_but_not_turned() -> None:
    assert names_axis("houses lie vertically in rows")
    assert allowed_views("d4", "houses lie vertically in rows") == (0, 2, 4, 6)


def test_flips_alone_and_no_augmentation_are_as_asked() -> None:
    assert allowed_views("flips", "a forest") == (0, 2, 4, 6)
    assert allowed_views("none", "a forest") == (0,)
