"""A synthetic scene shows what its truth says, and the same numbers give the same scene."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cmpagl_core.errors import UsageError
from cmpagl_core.synthetic.kinds import CYCLE, kind_of, split_of
from cmpagl_core.synthetic.scene import DrawnScene, draw_scene
from cmpagl_core.synthetic.truth import Box, shows

scenes = st.builds(draw_scene, number=st.integers(0, 10_000), seed=st.integers(0, 2**31), image_size_px=st.just(96))


def numbers_of(kind: str, count: int) -> list[int]:
    return [number for number in range(40 * len(CYCLE)) if kind_of(number).name == kind][:count]


def pixels(scene: DrawnScene) -> NDArray[np.float32]:
    return np.asarray(scene.image, dtype=np.float32)


def inner(box: Box) -> tuple[slice, slice]:
    """The middle half of a box, where a thing that is turned still fills it."""
    x0, y0, x1, y1 = box
    dx, dy = (x1 - x0) // 4, (y1 - y0) // 4
    return slice(y0 + dy, max(y1 - dy, y0 + dy + 1)), slice(x0 + dx, max(x1 - dx, x0 + dx + 1))


def gap_px(first: Box, second: Box) -> int:
    across = max(first[0] - second[2], second[0] - first[2], 0)
    down = max(first[1] - second[3], second[1] - first[3], 0)
    return max(across, down)


def colourfulness(image: NDArray[np.float32], colour: str) -> NDArray[np.float32]:
    """How strongly each pixel has a colour: [S, S]."""
    red, green, blue = (image[:, :, channel] for channel in range(3))
    of: dict[str, NDArray[np.float32]] = {
        "white": (red + green + blue) / 3,
        "red": red - (green + blue) / 2,
        "orange": red - blue,
        "blue": blue - (red + green) / 2,
    }
    return of[colour]


@settings(max_examples=25, deadline=None)
@given(scene=scenes)
def test_every_box_is_whole_and_inside_the_image(scene: DrawnScene) -> None:
    size = scene.truth.image_size_px
    assert scene.image.size == (size, size)
    assert scene.truth.objects
    for thing in scene.truth.objects:
        assert thing.count == len(thing.boxes) > 0
        for x0, y0, x1, y1 in thing.boxes:
            assert 0 <= x0 < x1 <= size
            assert 0 <= y0 < y1 <= size


@settings(max_examples=25, deadline=None)
@given(scene=scenes)
def test_what_a_relation_names_is_in_the_image_and_near_things_are_near(scene: DrawnScene) -> None:
    truth = scene.truth
    for subject, word, target in truth.relations:
        assert shows(truth, subject)
        assert shows(truth, target)
        if word in ("near", "beside"):
            nearest = min(gap_px(one, other) for one in truth.boxes_of(subject) for other in truth.boxes_of(target))
            assert nearest <= 0.35 * truth.image_size_px, (truth.file, truth.seed, subject, word, target)


@settings(max_examples=5, deadline=None)
@given(number=st.integers(0, 500), seed=st.integers(0, 1000))
def test_the_same_seed_and_number_give_the_same_scene(number: int, seed: int) -> None:
    first, second = draw_scene(number, seed, 96), draw_scene(number, seed, 96)
    assert first.truth == second.truth
    assert first.image.tobytes() == second.image.tobytes()


def test_another_seed_gives_another_scene() -> None:
    assert draw_scene(0, seed=1).image.tobytes() != draw_scene(0, seed=2).image.tobytes()


def test_airports_near_the_sea_can_be_told_from_those_inland() -> None:
    for seed in range(8):
        coastal = draw_scene(numbers_of("airport by the sea", 1)[0], seed).truth
        inland = draw_scene(numbers_of("airport inland", 1)[0], seed).truth
        assert shows(coastal, "airport")
        assert shows(coastal, "sea")
        assert ("airport", "near", "sea") in coastal.relations
        assert sum(any(w in c.lower() for w in ("sea", "ocean", "beach")) for c in coastal.captions) >= 2
        assert shows(inland, "airport")
        assert not shows(inland, "sea")
        assert not any("sea" in caption.lower().split() for caption in inland.captions)


def test_sea_is_seen_where_the_truth_has_it() -> None:
    shares: dict[bool, list[float]] = {True: [], False: []}
    for kind in ("airport by the sea", "airport inland"):
        for number in numbers_of(kind, 6):
            scene = draw_scene(number, seed=5)
            red, _, blue = (pixels(scene)[:, :, channel] for channel in range(3))
            shares[shows(scene.truth, "sea")].append(float((blue > red + 18).mean()))
    assert len(shares[True]) == len(shares[False]) == 6
    assert min(shares[True]) > 0.08 > 0.04 > max(shares[False])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("airport by the sea", "plane"),
        ("harbour", "boat"),
        ("storage tanks", "storage tank"),
        ("storage tanks by the sea", "storage tank"),
        ("tennis courts", "tennis court"),
        ("houses among trees", "house"),
    ],
)
def test_things_of_a_colour_stand_out_in_that_colour_inside_their_boxes(kind: str, name: str) -> None:
    compared = 0
    for number in numbers_of(kind, 8):
        scene = draw_scene(number, seed=11)
        image = pixels(scene)
        outside = np.ones(image.shape[:2], dtype=bool)
        for x0, y0, x1, y1 in scene.truth.boxes_of(name):
            outside[y0:y1, x0:x1] = False
        for thing in scene.truth.objects:
            if thing.name == name and thing.colour in ("white", "red", "orange", "blue"):
                strength = colourfulness(image, thing.colour)
                within = np.mean([strength[inner(box)].mean() for box in thing.boxes])
                assert within > strength[outside].mean() + 12, (scene.truth.file, thing.colour)
                compared += 1
    assert compared >= 3


def test_splits_are_eighty_ten_ten_and_every_kind_is_in_each() -> None:
    count = 10 * len(CYCLE)
    for seed in (0, 1, 7):
        splits = [split_of(number, seed) for number in range(count)]
        assert {name: splits.count(name) for name in ("train", "val", "test")} == {
            "train": count * 8 // 10,
            "val": count // 10,
            "test": count // 10,
        }
        for name in ("train", "val", "test"):
            assert {kind_of(n).name for n, split in enumerate(splits) if split == name} == {k.name for k in CYCLE}
    assert [split_of(n, 0) for n in range(count)] != [split_of(n, 1) for n in range(count)]


def test_an_eighth_of_the_scenes_are_airports_by_the_sea() -> None:
    share = sum(kind.name == "airport by the sea" for kind in CYCLE) / len(CYCLE)
    assert share == pytest.approx(0.12)


@pytest.mark.parametrize("size", [64, 131, 256])
def test_other_sizes_show_the_same_kind_of_ground(size: int) -> None:
    truth = draw_scene(0, seed=2, image_size_px=size).truth
    assert truth.image_size_px == size
    assert 224 * 2.3 * 0.85 < truth.metres_per_px * size < 224 * 2.3 * 1.17
    assert shows(truth, "airport")
    assert shows(truth, "sea")


@pytest.mark.parametrize("size", [0, 63, 1025])
def test_a_size_that_cannot_be_drawn_is_refused(size: int) -> None:
    with pytest.raises(UsageError, match=f"cannot draw scenes of {size} px; choose 64 to 1024 px"):
        draw_scene(0, seed=0, image_size_px=size)
