"""Cached maps are those of the backbone, for every view; nothing stale is served; a kill loses one shard at most."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmpagl_core.datasets.loading import WHOLE, Draw, ImageFiles
from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.encoders import backbone_cache as module
from cmpagl_core.encoders import backbone_maps
from cmpagl_core.encoders.backbone_cache import BackboneSettings, backbone_cache, backbone_settings
from cmpagl_core.encoders.backbone_maps import TorchMaps, folded
from cmpagl_core.encoders.image_graph import graph_path
from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.files import sha256_file
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import read_pixel_values
from cmpagl_core.models.backbone import Backbone
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.progress import Advance, Silent
from cmpagl_core.recipe import ImageEncoderPart, Recipe

CPU = torch.device("cpu")
SETTINGS = BackboneSettings("mobilenetv3_small_050", 64, (0, 2, 4, 6), "fp32")


class Told(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, message: str) -> None:
        self.messages.append(message)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    cfg = ImageEncoderPart(
        size="custom",
        width=8,
        depths=(0, 0, 1, 1),
        num_heads=(1, 1, 1, 1),
        backbone="mobilenetv3_small_050",
        backbone_strides=(16, 32),
    )
    return Backbone(cfg).eval()


def images(folder: Path, count: int, seed: int = 0) -> DataSplit:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = tuple(folder / f"{row}.png" for row in range(count))
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    names = tuple(path.stem for path in paths)
    return DataSplit(
        dataset="small",
        name="train",
        image_ids=names,
        paths=paths,
        image_sha256=tuple(sha256_file(path) for path in paths),
        scenes=("",) * count,
        captions=names,
        caption_ids=names,
        caption_image=np.arange(count),
    )


def test_cached_maps_are_those_that_the_backbone_makes_of_the_turned_image(tmp_path: Path, backbone: Backbone) -> None:
    split = images(tmp_path / "p", 5)
    cache = backbone_cache(tmp_path / "c", backbone, SETTINGS, [split], Silent(), CPU)
    draws = [Draw(row, row, view, WHOLE) for row, view in ((3, 4), (0, 0), (4, 6), (0, 2))]
    found = cache.unflatten(cache.source(split).gather(draws))
    with torch.inference_mode():
        expected = backbone.parts(ImageFiles(split, 64).gather(draws))
        joined = backbone.join(found)
    assert [part.shape for part in found] == [part.shape for part in expected]
    for part, right in zip(found, expected, strict=True):
        torch.testing.assert_close(part, right, rtol=2e-3, atol=2e-3)  # half precision on disk
    assert joined.shape == (4, backbone.channels, 4, 4)


def test_a_large_photo_is_cached_as_it_is_decoded_elsewhere(tmp_path: Path, backbone: Backbone) -> None:
    split = images(tmp_path / "p", 1)
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    noise.resize((1200, 1200), Image.Resampling.BICUBIC).save(split.paths[0], "JPEG")
    split = replace(split, image_sha256=(sha256_file(split.paths[0]),))
    cache = backbone_cache(tmp_path / "c", backbone, SETTINGS, [split], Silent(), CPU)
    found = cache.unflatten(cache.source(split).gather([Draw(0, 0, 0, WHOLE)]))
    with torch.inference_mode():
        expected = backbone.parts(read_pixel_values(split.paths[0], 64)[None])
    for part, right in zip(found, expected, strict=True):
        torch.testing.assert_close(part, right, rtol=2e-3, atol=2e-3)  # half precision on disk


def test_the_size_is_said_before_and_a_full_cache_is_not_written_again(tmp_path: Path, backbone: Backbone) -> None:
    split = images(tmp_path / "p", 3)
    told = Told()
    cache = backbone_cache(tmp_path / "c", backbone, SETTINGS, [split, split.subset([1])], told, CPU)
    on_disk = sum(path.stat().st_size for path in (tmp_path / "c").rglob("*.safetensors"))
    values = cache.shards[0].shape[2]
    assert 0 <= on_disk - 3 * 4 * values * 2 < 1000
    assert len(told.messages) == 1
    assert told.messages[0].startswith("caching the frozen backbone's maps of 3 images in 4 views: 0 MB in ")
    again = Told()
    backbone_cache(tmp_path / "c", backbone, SETTINGS, [split], again, CPU)
    assert again.messages == []


def test_new_images_are_added_and_old_ones_stay_as_they_are(tmp_path: Path, backbone: Backbone) -> None:
    split = images(tmp_path / "p", 6)
    backbone_cache(tmp_path / "c", backbone, SETTINGS, [split.subset([0, 1])], Silent(), CPU)
    (old,) = (tmp_path / "c").rglob("*.safetensors")
    before = old.stat().st_mtime_ns
    told = Told()
    cache = backbone_cache(tmp_path / "c", backbone, SETTINGS, [split], told, CPU)
    assert "of 4 images" in told.messages[0]
    assert "(2 images are already cached)" in told.messages[0]
    assert old.stat().st_mtime_ns == before
    assert len(cache.rows) == 6


def test_a_changed_image_is_refused(tmp_path: Path, backbone: Backbone) -> None:
    split = images(tmp_path / "p", 3)
    backbone_cache(tmp_path / "c", backbone, SETTINGS, [split], Silent(), CPU)
    Image.new("RGB", (64, 64)).save(split.paths[1])
    with pytest.raises(DataError, match=r"1\.png was changed after the data set was prepared; run `cmpagl prepare`"):
        backbone_cache(tmp_path / "c", backbone, SETTINGS, [split], Silent(), CPU)


def test_other_weights_sizes_views_and_precisions_have_other_caches(backbone: Backbone) -> None:
    sha = module.weights_sha256(backbone)
    keys = {
        SETTINGS.key(sha),
        SETTINGS.key("0" * 64),
        BackboneSettings("mobilenetv3_small_050", 96, (0, 2, 4, 6), "fp32").key(sha),
        BackboneSettings("mobilenetv3_small_050", 64, (0,), "fp32").key(sha),
        BackboneSettings("mobilenetv3_small_050", 64, (0, 2, 4, 6), "bf16").key(sha),
    }
    assert len(keys) == 5


def test_the_weights_hash_sees_a_single_changed_number(backbone: Backbone) -> None:
    before = module.weights_sha256(backbone)
    weight = next(backbone.body.parameters())
    with torch.no_grad():
        kept = weight.view(-1)[0].clone()
        weight.view(-1)[0] += 1.0
        changed = module.weights_sha256(backbone)
        weight.view(-1)[0] = kept
    assert changed != before == module.weights_sha256(backbone)


def test_an_interrupted_filling_goes_on_where_it_stopped(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = images(tmp_path / "p", 6)
    monkeypatch.setattr(module, "_SHARD_BYTES", 1)  # one image a shard
    write, written = module._write_shard, []

    def third_is_interrupted(*arguments: object) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write(*arguments))  # type: ignore[func-returns-value, arg-type]

    monkeypatch.setattr(module, "_write_shard", third_is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        backbone_cache(tmp_path / "c", backbone, SETTINGS, [split], Silent(), CPU)
    monkeypatch.setattr(module, "_write_shard", write)
    told = Told()
    assert len(backbone_cache(tmp_path / "c", backbone, SETTINGS, [split], told, CPU).rows) == 6
    assert "of 4 images" in told.messages[0]
    assert not list((tmp_path / "c").rglob("*.partial"))


def test_what_an_interrupted_shard_holds_by_then_is_kept(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone_maps, "_VIEWS_AT_ONCE", 8)  # two images

    class Interrupts(Silent):
        @contextmanager
        def task(self, description: str, total: int, unit: str = "") -> Iterator[Advance]:
            def advance(done: int) -> None:
                if unit == "img" and description.startswith("cache"):
                    raise KeyboardInterrupt

            yield advance

    split, told = images(tmp_path / "p", 6), Told()
    with pytest.raises(KeyboardInterrupt):
        backbone_cache(tmp_path / "c", backbone, SETTINGS, [split], Interrupts(), CPU)
    assert len(backbone_cache(tmp_path / "c", backbone, SETTINGS, [split], told, CPU).rows) == 6
    assert "of 4 images" in told.messages[0]


def test_a_disk_without_room_is_told_before_anything_is_computed(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = images(tmp_path / "p", 2)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(
        CmpaglError, match=r"needs 0 MB for the backbone's maps, but only 0 MB are free; free disk space"
    ):
        backbone_cache(tmp_path / "c", backbone, SETTINGS, [split], Silent(), CPU)
    assert not (tmp_path / "c").exists()


def test_a_foreign_file_in_the_cache_is_named(tmp_path: Path, backbone: Backbone) -> None:
    split = images(tmp_path / "p", 2)
    home = tmp_path / "c" / SETTINGS.key(module.weights_sha256(backbone))
    home.mkdir(parents=True)
    (home / "x.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError, match=r"x\.safetensors"):
        backbone_cache(tmp_path / "c", backbone, SETTINGS, [split], Silent(), CPU)


def test_a_broken_image_is_named(tmp_path: Path, backbone: Backbone) -> None:
    split = images(tmp_path / "p", 2)
    split.paths[1].write_bytes(split.paths[1].read_bytes()[:100])
    hashes = (split.image_sha256[0], sha256_file(split.paths[1]))
    broken = DataSplit(**{**vars(split), "image_sha256": hashes})
    with pytest.raises(DataError, match=r"1\.png is a broken image"):
        backbone_cache(tmp_path / "c", backbone, SETTINGS, [broken], Silent(), CPU)


def test_backbones_that_give_other_maps_do_not_meet_in_one_cache(tmp_path: Path) -> None:
    split, tree = images(tmp_path / "p", 2), {"backbone": "mobilenetv3_small_050", "size": "custom", "width": 8}
    for strides, depths in (((16, 32), (0, 0, 1, 1)), ((32,), (0, 0, 0, 1))):
        part = {**tree, "backbone_strides": strides, "depths": depths, "num_heads": (1, 1, 1, 1)}
        recipe = Recipe.model_validate({"data": {"image_size_px": 64}, "image_encoder": part})
        torch.manual_seed(0)
        backbone = Backbone(recipe.image_encoder).eval()
        cache = backbone_cache(tmp_path / "c", backbone, backbone_settings(recipe, CPU), [split], Silent(), CPU)
        assert len(cache.shapes) == len(strides)


@pytest.fixture
def onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime computes any number of maps."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(module, "_MANY_VIEWS", 1)


@pytest.mark.usefixtures("onnx")
def test_onnx_runtime_computes_the_maps_of_torch_into_a_folder_of_their_own(tmp_path: Path, backbone: Backbone) -> None:
    split, told = images(tmp_path / "p", 5), Told()
    by_torch, by_runtime = SETTINGS.ways
    found = backbone_cache(tmp_path / "c", backbone, SETTINGS, [split], told, CPU)
    assert [path.name for path in (tmp_path / "c").iterdir()] == [by_runtime.key(module.weights_sha256(backbone))]
    assert told.messages[0] == "writing the frozen backbone for ONNX Runtime, once"
    encoder = TorchMaps(folded(backbone), 64, SETTINGS.views, CPU, "fp32")
    (expected,) = encoder.batches([ImageRef(path.name, path) for path in split.paths])
    np.testing.assert_allclose(found.shards[0], expected.maps, rtol=2e-3, atol=1e-3)  # by a rounding or two
    again = backbone_cache(tmp_path / "c", backbone, by_torch, [split], told, CPU)
    assert again.rows == found.rows
    assert len(told.messages) == 2
    fast = use_kernels(copy.deepcopy(backbone), CPU)  # as a training has it
    by_fast = backbone_cache(tmp_path / "fast" / "c", fast, SETTINGS, [split], Silent(), CPU)
    np.testing.assert_array_equal(by_fast.shards[0], found.shards[0])


@pytest.mark.usefixtures("onnx")
def test_maps_that_torch_cached_before_are_kept_and_used(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = images(tmp_path / "p", 5)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_MANY_VIEWS", 512)
        backbone_cache(tmp_path / "c", backbone, SETTINGS, [split.subset([0, 1])], Silent(), CPU)
    told = Told()
    assert len(backbone_cache(tmp_path / "c", backbone, SETTINGS, [split], told, CPU).rows) == 5
    assert "of 3 images" in told.messages[-1]
    assert len(list((tmp_path / "c").iterdir())) == 2
    weights = {f"image_encoder.patch_embed.{name}": tensor for name, tensor in backbone.state_dict().items()}
    reopened = module.open_backbone_cache(tmp_path / "c", backbone, weights, SETTINGS, CPU)
    assert reopened is not None
    assert reopened.rows.keys() == set(split.image_sha256)


@pytest.mark.usefixtures("onnx")
def test_a_broken_graph_is_written_again_and_torch_does_where_none_can_be(
    tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, told = images(tmp_path / "p", 3), Told()
    graph = graph_path(tmp_path, SETTINGS.ways[1].key(module.weights_sha256(backbone)))
    graph.parent.mkdir()
    graph.write_bytes(b"no graph")
    backbone_cache(tmp_path / "c", backbone, SETTINGS, [split.subset([0])], told, CPU)
    assert told.messages[0].startswith("not used: ")
    assert told.messages[1].startswith("writing the frozen backbone")

    def fail(*_: object) -> None:
        raise CmpaglError("the image encoder cannot be written as ONNX (no such operator)")

    graph.unlink()
    monkeypatch.setattr("cmpagl_core.encoders.onnx_export.export_backbone", fail)
    assert len(backbone_cache(tmp_path / "c", backbone, SETTINGS, [split], told, CPU).rows) == 3
    assert any(message.startswith("maps are computed by torch: ") for message in told.messages)


def test_half_precision_and_gpus_are_left_to_torch() -> None:
    assert len(replace(SETTINGS, precision="bf16").ways) == len(replace(SETTINGS, device="cuda").ways) == 1
