"""Near-duplicates are found turned, shifted, brightened and recompressed; images of one kind are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from cmpagl_core.errors import DataError
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.near_duplicates import MOST_CANDIDATES, NearPair, candidates, near_pairs
from cmpagl_core.progress import Silent
from cmpagl_core.synthetic.generate import generate


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty drawn scenes of few kinds, all different."""
    folder = tmp_path_factory.mktemp("scenes")
    generate(folder, 40, 3, 96, Silent())
    return sorted((folder / "images").iterdir())


def pairs_of(paths: list[Path], within: int | None = None, contents: list[str] | None = None) -> list[NearPair]:
    refs = [ImageRef(path.name, path) for path in paths]
    return near_pairs(refs, contents or [str(path) for path in paths], within or len(paths), Silent())


def test_different_scenes_of_one_kind_are_no_pairs(scenes: list[Path]) -> None:
    assert pairs_of(scenes) == []


@pytest.mark.parametrize("turn", [None, *Image.Transpose])
def test_a_copy_in_any_turn_is_found_and_the_turn_named(
    scenes: list[Path], tmp_path: Path, turn: Image.Transpose | None
) -> None:
    with Image.open(scenes[5]) as image:
        copy = image.copy() if turn is None else image.transpose(turn)
    copy.save(tmp_path / "copy.jpg", quality=70)
    (pair,) = pairs_of([*scenes[:10], tmp_path / "copy.jpg"])
    assert (pair.first, pair.second) == (5, 10)
    assert pair.alignment > 0.5
    back = {Image.Transpose.ROTATE_90: "rotate 270", Image.Transpose.ROTATE_270: "rotate 90"}
    if turn is not None:
        assert pair.turn == back.get(turn, turn.name.lower().replace("_", " "))
    else:
        assert pair.turn == ""


def test_a_shifted_brighter_smaller_copy_is_found(scenes: list[Path], tmp_path: Path) -> None:
    with Image.open(scenes[7]) as image:
        shifted = image.crop((2, 1, image.width, image.height)).resize((80, 80), Image.Resampling.BICUBIC)
    ImageEnhance.Brightness(shifted).enhance(1.2).save(tmp_path / "copy.png")
    (pair,) = pairs_of([*scenes[:10], tmp_path / "copy.png"])
    assert (pair.first, pair.second, pair.turn) == (7, 10, "")


def test_equal_contents_and_pairs_behind_the_first_images_are_left_out(scenes: list[Path]) -> None:
    twice = [*scenes[:5], scenes[1], scenes[4]]
    assert len(pairs_of(twice, contents=[str(row) for row in range(7)])) == 2
    assert pairs_of(twice) == []  # their contents are equal
    assert [pair.second for pair in pairs_of(twice, within=2, contents=[str(row) for row in range(7)])] == [5]


def test_flat_images_are_no_pairs(tmp_path: Path) -> None:
    paths = [tmp_path / f"{value}.png" for value in (10, 90, 200)]
    for path in paths:
        Image.new("RGB", (40, 40), (int(path.stem),) * 3).save(path)
    assert pairs_of(paths) == []


def test_candidates_are_those_of_a_loop_over_all_pairs() -> None:
    generator = np.random.default_rng(4)
    hashes = generator.integers(0, 1 << 12, (150, 8), dtype=np.uint64)
    usable = generator.random(150) > 0.1
    contents = [str(number) for number in generator.integers(0, 100, 150)]
    found = candidates(hashes, usable, contents, 120, 2, Silent())
    by_hand = {
        (a, b): min(int(hashes[a, 0] ^ turned).bit_count() for turned in hashes[b])
        for a in range(120)
        for b in range(a + 1, 150)
        if usable[a] and usable[b] and contents[a] != contents[b]
    }
    expected = {pair: bits for pair, bits in by_hand.items() if bits <= 2}
    named = zip(found.first.tolist(), found.second.tolist(), strict=True)
    assert dict(zip(named, found.bits.tolist(), strict=True)) == expected
    assert len(expected) > 100
    assert list(found.bits) == sorted(found.bits)


def test_of_too_many_candidates_the_nearest_are_kept_and_the_others_counted() -> None:
    hashes = np.zeros((70, 8), dtype=np.uint64)
    hashes[60:] = 1
    found = candidates(hashes, np.ones(70, dtype=np.bool_), [str(row) for row in range(70)], 70, 3, Silent(), most=100)
    assert len(found.first) == 100
    assert not found.bits.any()
    assert found.left_out == 70 * 69 // 2 - 100
    assert MOST_CANDIDATES >= 100_000


def test_an_image_that_is_gone_is_named(scenes: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg does not exist"):
        pairs_of([scenes[0], tmp_path / "gone.jpg"])
