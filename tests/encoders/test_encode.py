"""Encoding gives every image and caption its own features, whatever the batches, in bounded memory."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmpagl_core.datasets.augment import d4_transform
from cmpagl_core.encoders.cmpagl import CmpaglEncoder
from cmpagl_core.encoders.decode import Decoded, decoded_batches
from cmpagl_core.encoders.encode import (
    decoder,
    encode_captions,
    encode_image_tokens,
    encode_images,
    encoded_batches,
)
from cmpagl_core.encoders.encoder import collect
from cmpagl_core.encoders.feature_set import unique_texts
from cmpagl_core.encoders.length_groups import length_groups
from cmpagl_core.errors import DataError
from cmpagl_core.files import FileStamp
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import open_image, to_pixel_values
from cmpagl_core.progress import Silent
from cmpagl_core.runs import LoadedModel, open_run


@pytest.fixture(scope="module")
def loaded(tiny_run: Path) -> LoadedModel:
    return open_run(tiny_run).load()


@pytest.fixture(scope="module")
def images(tiny_images: Path) -> list[Path]:
    return sorted(tiny_images.rglob("*.jpg"))


def refs(paths: list[Path]) -> list[ImageRef]:
    return [ImageRef(path.name, path) for path in paths]


def one_by_one(loaded: LoadedModel, paths: list[Path]) -> np.ndarray:
    size = loaded.recipe.data.image_size_px
    with torch.inference_mode():
        rows = [loaded.model.encode_images(to_pixel_values(open_image(path), size)[None]).features for path in paths]
    return torch.cat(rows).numpy()


def test_images_encoded_in_batches_equal_those_encoded_alone(loaded: LoadedModel, images: list[Path]) -> None:
    expected = one_by_one(loaded, images)
    for batch_size in (1, 5, 64):
        found = encode_images(loaded, refs(images), Silent(), batch_size=batch_size)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_d4_averages_the_eight_views_encoded_apart(loaded: LoadedModel, images: list[Path]) -> None:
    values = to_pixel_values(open_image(images[0]), loaded.recipe.data.image_size_px)[None]
    with torch.inference_mode():
        apart = [loaded.model.encode_images(d4_transform(values, view)).features[0] for view in range(8)]
    mean = torch.stack(apart).mean(dim=0)
    found = encode_images(loaded, refs(images[:1]), Silent(), tta="d4")[0]
    np.testing.assert_allclose(found, (mean / mean.norm()).numpy(), atol=2e-6)


def test_the_recipe_chooses_test_time_augmentation(loaded: LoadedModel, images: list[Path]) -> None:
    cfg = loaded.recipe.evaluate.model_copy(update={"tta": "d4"})
    recipe = loaded.recipe.model_copy(update={"evaluate": cfg})
    found = encode_images(replace(loaded, recipe=recipe), refs(images[:2]), Silent())
    np.testing.assert_array_equal(found, encode_images(loaded, refs(images[:2]), Silent(), tta="d4"))


def test_a_broken_image_is_named_and_stops_an_export(loaded: LoadedModel, images: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(images[0].read_bytes()[:300])
    with pytest.raises(DataError, match=r"broken\.jpg.*repair or remove"):
        encode_images(loaded, refs([*images[:3], broken]), Silent())


def test_a_broken_image_leaves_torch_as_it_was(tiny_run: Path, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    encoder = CmpaglEncoder(open_run(tiny_run), Silent())
    with pytest.raises(DataError, match=r"broken\.jpg is not an image") as raised:
        collect(encoder.encode_images(refs([images[0], tmp_path / "broken.jpg"])), 2, Silent())
    assert not torch.is_inference_mode_enabled()
    assert raised.tb is not None  # which keeps what was not ended


def test_broken_images_can_be_left_out_and_the_others_keep_their_rows(
    loaded: LoadedModel, images: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    batches = list(encoded_batches(loaded, refs([broken, *images[:2], broken, images[2]]), batch_size=2))
    assert [row for batch in batches for row in batch.rows] == [1, 2, 4]
    assert [item.image.path for batch in batches for item in batch.broken] == [broken, broken]
    found = np.concatenate([batch.features for batch in batches if batch.rows])
    np.testing.assert_allclose(found, one_by_one(loaded, images[:3]), atol=2e-6)


def test_decoding_stays_a_few_batches_ahead_and_no_more() -> None:
    decoded = threading.Semaphore(0)
    count = [0]
    lock = threading.Lock()

    def decode(image: ImageRef) -> Decoded:
        with lock:
            count[0] += 1
        decoded.release()
        return Decoded(torch.zeros(3, 2, 2), FileStamp(0, 0, ""))

    batches = decoded_batches(refs([Path(str(row)) for row in range(1000)]), decode, batch_size=10, workers=2)
    next(batches)
    time.sleep(0.1)
    assert 20 <= count[0] <= 40
    batches.close()
    assert count[0] <= 40


def test_an_error_that_is_not_the_images_fault_is_raised() -> None:
    def decode(image: ImageRef) -> Decoded:
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        list(decoded_batches(refs([Path("a")]), decode, batch_size=2))


def test_captions_encoded_in_groups_equal_those_encoded_alone(loaded: LoadedModel) -> None:
    texts = ["a square", "field 3 with a bright square in it", "", "a square", "square " * 40, "\N{AIRPLANE} plane"]
    with torch.inference_mode():
        alone = []
        for text in texts:
            tokens = loaded.tokenizer([text])
            alone.append(loaded.model.encode_texts(tokens.input_ids, tokens.attention_mask).features)
    found = encode_captions(loaded, texts, Silent())
    np.testing.assert_allclose(found, torch.cat(alone).numpy(), atol=2e-6)
    np.testing.assert_array_equal(found[0], found[3])


def test_no_captions_give_no_features(loaded: LoadedModel) -> None:
    assert encode_captions(loaded, [], Silent()).shape == (0, 32)


def test_length_groups_hold_every_row_once_within_the_token_budget() -> None:
    lengths = np.random.default_rng(0).integers(2, 65, 500)
    groups = length_groups(lengths, lambda texts, _, longest: texts * longest <= 256, longest_first=True)
    assert sorted(row for group in groups for row in group.tolist()) == list(range(500))
    assert all(len(group) * lengths[group].max() <= 256 for group in groups)
    padding = sum(len(group) * lengths[group].max() for group in groups) - lengths.sum()
    assert padding < 0.05 * lengths.sum()


def test_length_groups_keep_the_order_of_equal_lengths_and_never_leave_a_row_out() -> None:
    lengths = [3, 9, 3, 4, 9, 20]
    asked: list[tuple[int, int, int]] = []

    def fits(texts: int, shortest: int, longest: int) -> bool:
        asked.append((texts, shortest, longest))
        return longest <= 2 * shortest

    assert [group.tolist() for group in length_groups(lengths, fits)] == [[0, 2, 3], [1, 4], [5]]
    assert asked == [(2, 3, 3), (3, 3, 4), (4, 3, 9), (2, 9, 9), (3, 9, 20)]
    assert [group.tolist() for group in length_groups(lengths, fits, longest_first=True)] == [[5], [1, 4], [3, 0, 2]]
    assert length_groups([], fits) == []


def test_unique_texts_lead_back_to_every_text() -> None:
    texts = ["b", "a", "b", "", "a"]
    unique, row_of = unique_texts(texts)
    assert unique == ["b", "a", ""]
    assert [unique[row] for row in row_of] == texts


def test_image_tokens_are_kept_on_disk_in_half_precision(
    loaded: LoadedModel, images: list[Path], tmp_path: Path
) -> None:
    found = encode_image_tokens(loaded, refs(images), tmp_path / "tokens.npy", Silent())
    size = loaded.recipe.data.image_size_px
    values = torch.stack([to_pixel_values(open_image(path), size) for path in images])
    with torch.inference_mode():
        expected = loaded.model.encode_images(values).tokens
    assert isinstance(found, np.memmap)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-3, rtol=2e-3)


def test_a_large_photo_is_decoded_at_a_reduced_size_without_changing_what_is_seen(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    generator = np.random.default_rng(1)
    small = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    small.resize((1200, 1200), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=92)
    decoded = decoder(loaded.recipe)(ImageRef("large", tmp_path / "large.jpg"))
    assert isinstance(decoded, Decoded)
    whole = to_pixel_values(open_image(tmp_path / "large.jpg"), loaded.recipe.data.image_size_px)
    assert 0 < float((decoded.pixel_values - whole).abs().max()) < 0.2  # one grey level of 256 is about 0.017
    found = encode_images(loaded, refs([tmp_path / "large.jpg"]), Silent())
    cosine = float((found * one_by_one(loaded, [tmp_path / "large.jpg"])).sum())
    assert cosine > 0.999
