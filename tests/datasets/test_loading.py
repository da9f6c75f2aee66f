"""Pairs are drawn by seed, epoch and row alone; duplicates are positives; turned images keep true captions."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmpagl_core.datasets import loading
from cmpagl_core.datasets.augment import d4_transform
from cmpagl_core.datasets.loading import WHOLE, Draw, ImageFiles, KeptImages, PairBatch, PairLoader, image_source
from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.datasets.same_caption import caption_key
from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.recipe_data import DataPart


@dataclass(frozen=True)
class Lengths:
    """A tokenizer of one token a caption: its length."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


def tokenize(texts: Sequence[str]) -> Lengths:
    ids = torch.tensor([[len(text)] for text in texts])
    return Lengths(ids, torch.ones_like(ids, dtype=torch.bool))


@dataclass(frozen=True)
class RowSource:
    """Images that are their own row, view and box."""

    def gather(self, draws: Sequence[Draw]) -> torch.Tensor:
        return torch.tensor([[draw.row, draw.view, *draw.box] for draw in draws], dtype=torch.float32)


def split_of(
    images: int, captions: Sequence[tuple[int, str]], hashes: Sequence[str] | None = None, folder: Path = Path()
) -> DataSplit:
    names = [f"{row}" for row in range(images)]
    return DataSplit(
        dataset="small",
        name="train",
        image_ids=tuple(names),
        paths=tuple(folder / f"{name}.png" for name in names),
        image_sha256=tuple(hashes or names),
        scenes=("",) * images,
        captions=tuple(text for _, text in captions),
        caption_ids=tuple(str(row) for row in range(len(captions))),
        caption_image=np.array([image for image, _ in captions], dtype=np.int64),
    )


def five_each(images: int) -> list[tuple[int, str]]:
    return [(row, f"{'x' * row} caption {'abcde'[number]}") for row in range(images) for number in range(5)]


def loader(split: DataSplit, batch_size: int = 4, seed: int = 0, **part: object) -> PairLoader:
    return PairLoader(split, DataPart.model_validate(part), batch_size, tokenize, RowSource(), seed)


def signature(batches: Sequence[PairBatch]) -> list[tuple[list[float], tuple[str, ...]]]:
    return [(batch.images.flatten().tolist(), batch.captions) for batch in batches]


def test_every_captioned_image_comes_once_an_epoch_with_a_caption_of_its_own() -> None:
    captions = [(row, text) for row, text in five_each(11) if row != 7]
    split = split_of(11, captions)
    batches = list(loader(split, batch_size=4).epoch(0))
    rows = [int(row) for batch in batches for row in batch.images[:, 0]]
    assert sorted(rows) == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10]
    texts = [text for batch in batches for text in batch.captions]
    assert all((row, text) in captions for row, text in zip(rows, texts, strict=True))


def test_batches_differ_by_one_pair_at_most_and_never_exceed_the_size() -> None:
    made = loader(split_of(10, five_each(10)), batch_size=4)
    assert [len(batch) for batch in made.epoch(3)] == [4, 3, 3]
    assert (len(made), made.pairs) == (3, 10)


def test_an_epoch_can_be_made_again_from_any_batch_with_any_number_of_workers() -> None:
    split = split_of(23, five_each(23))
    expected = signature(list(loader(split, crop_scale_min=0.5).epoch(2)))
    assert signature(list(loader(split, crop_scale_min=0.5, workers=3).epoch(2))) == expected
    assert signature(list(loader(split, crop_scale_min=0.5, workers=1).epoch(2, first=4))) == expected[4:]


def test_epochs_and_seeds_differ() -> None:
    split = split_of(23, five_each(23))
    first = signature(list(loader(split).epoch(0)))
    assert signature(list(loader(split).epoch(1))) != first
    assert signature(list(loader(split, seed=1).epoch(0))) != first


def test_what_chance_decides_for_an_image_does_not_depend_on_the_others() -> None:
    few, many = split_of(5, five_each(5)), split_of(50, five_each(50))
    assert [loader(few).draw(4, row) for row in range(5)] == [loader(many).draw(4, row) for row in range(5)]


def test_all_captions_and_views_come_up_over_the_epochs() -> None:
    made = loader(split_of(2, five_each(2)))
    draws = [made.draw(epoch, 1) for epoch in range(200)]
    assert {draw.caption for draw in draws} == {5, 6, 7, 8, 9}
    assert {draw.view for draw in draws} == set(range(8))


def test_the_same_words_or_the_same_image_are_positives() -> None:
    captions = [(0, "A plane ."), (1, "a plane."), (2, "a boat"), (3, "a road"), (4, "a tree")]  # 2 and 4 are copies
    split = split_of(5, captions, hashes=["a", "b", "c", "d", "c"])
    (batch,) = loader(split, batch_size=5).epoch(0)
    rows = batch.images[:, 0].long().tolist()
    expected = torch.eye(5, dtype=torch.bool)
    for one, other in ((0, 1), (2, 4)):
        expected[rows.index(one), rows.index(other)] = expected[rows.index(other), rows.index(one)] = True
    assert torch.equal(batch.positives, expected)


def test_a_caption_that_another_image_owns_without_drawing_it_is_no_negative_of_that_image() -> None:
    captions = [(0, "a plane"), (1, "A plane."), (1, "two planes"), (2, "a boat"), (2, "Two planes !"), (3, "a road")]
    split = split_of(4, captions)
    made = loader(split, batch_size=4)
    seen = set()
    for epoch in range(60):
        (batch,) = made.epoch(epoch)
        rows = batch.images[:, 0].long().tolist()
        keys = [caption_key(text) for text in batch.captions]
        for i, row in enumerate(rows):
            owned = {caption_key(split.captions[caption]) for caption in split.captions_of(row)}
            assert batch.positives[i].tolist() == [key in owned for key in keys]
        pair = batch.positives[rows.index(1), rows.index(0)], batch.positives[rows.index(0), rows.index(1)]
        seen.add((bool(pair[0]), bool(pair[1])))
    assert seen == {(True, True), (True, False)}  # image 1 owns "a plane" whatever it drew; image 0 never "two planes"


def test_captions_without_words_are_told_apart() -> None:
    assert caption_key("A  plane, near trees .") == caption_key("a plane near trees")
    assert caption_key("🛫") != caption_key("🌳")


def test_only_captions_without_a_direction_are_turned() -> None:
    made = loader(split_of(2, [(0, "a lake on the left"), (1, "a lake")]))
    views = [{made.draw(epoch, row).view for epoch in range(60)} for row in (0, 1)]
    assert views == [{0}, set(range(8))]


def test_crops_keep_at_least_the_smallest_area_and_stay_inside() -> None:
    made = loader(split_of(2, five_each(2)), crop_scale_min=0.6)
    boxes = [made.draw(epoch, 0).box for epoch in range(300)]
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
    assert min(min(box) for box in boxes) >= 0.0
    assert max(max(box) for box in boxes) <= 1.0
    assert 0.6 <= min(areas) < 0.65
    assert 0.95 < max(areas) <= 1.0
    assert made.draw(0, 0).box != WHOLE
    assert loader(split_of(2, five_each(2))).draw(0, 0).box == WHOLE


def test_images_are_turned_and_cropped_as_drawn(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, size=(32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    files = ImageFiles(split_of(1, [(0, "x")], folder=tmp_path), image_size_px=32)
    plain, turned, cropped = files.gather([Draw(0, 0, 0, WHOLE), Draw(0, 0, 5, WHOLE), Draw(0, 0, 0, (0, 0, 0.5, 1))])
    assert torch.equal(turned, d4_transform(plain, 5))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    back = (plain.permute(1, 2, 0) * std + mean) * 255
    torch.testing.assert_close(back, torch.from_numpy(pixels).float(), atol=0.01, rtol=0)
    squeezed = Image.fromarray(pixels[:, :16]).resize((32, 32), Image.Resampling.BICUBIC)
    back = (cropped.permute(1, 2, 0) * std + mean) * 255
    inner = slice(0, 26)  # at the crop's edge the filter sees pixels beyond it
    expected = torch.from_numpy(np.array(squeezed)).float()
    torch.testing.assert_close(back[:, inner], expected[:, inner], atol=0.51, rtol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_gone_is_named(tmp_path: Path, workers: int) -> None:
    split = split_of(4, five_each(4), folder=tmp_path)
    made = PairLoader(split, DataPart(workers=workers), 4, tokenize, ImageFiles(split, 32), seed=0)
    with pytest.raises(DataError, match=r"image .*\.png does not exist"):
        list(made.epoch(0))


def test_a_worker_that_dies_ends_the_epoch_and_the_other_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dies:
        def gather(self, draws: Sequence[Draw]) -> torch.Tensor:
            raise MemoryError

    with pytest.raises(MemoryError):
        list(loader(split_of(40, five_each(40)), workers=2).reading(Dies()).epoch(0))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]

    def refuses(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuses)
    with pytest.raises(CmpaglError, match=r"no thread can be started to decode images; .*workers=0"):
        list(loader(split_of(40, five_each(40)), workers=2).epoch(0))


def test_an_epoch_left_early_stops_its_workers() -> None:
    epoch = loader(split_of(40, five_each(40)), workers=2).epoch(0)
    next(epoch)
    epoch.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_one_captioned_image_is_too_few() -> None:
    with pytest.raises(DataError, match="the train split of small has 1 captioned images; training needs at least 2"):
        loader(split_of(3, [(1, "alone")]))


def test_kept_images_are_those_of_the_files_to_the_bit_and_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for row in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / f"{row}.png")
    split = split_of(3, [(0, "a"), (1, "b"), (2, "c")], folder=tmp_path)
    draws = [Draw(2, 2, 5, WHOLE), Draw(0, 0, 0, WHOLE), Draw(2, 2, 3, WHOLE)]
    opened: list[Path] = []
    really = loading.open_image
    monkeypatch.setattr(loading, "open_image", lambda path, **rest: (opened.append(path), really(path, **rest))[1])
    kept = KeptImages(split.paths, 32)
    assert torch.equal(kept.gather(draws), kept.gather(draws))
    assert len(opened) == 2
    assert torch.equal(kept.gather(draws), ImageFiles(split, 32).gather(draws))


def test_images_are_kept_where_they_are_small_and_not_cropped() -> None:
    split = split_of(3, [(0, "a")])
    assert isinstance(image_source(split, DataPart(image_size_px=96)), KeptImages)
    assert isinstance(image_source(split, DataPart(image_size_px=96, crop_scale_min=0.5)), ImageFiles)
    assert not KeptImages.fit(11_000, 224)
