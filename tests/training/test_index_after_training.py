"""What a training cached of a frozen backbone spares an index of the same images the backbone's work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cmpagl_core.datasets.prepared import PreparedDataset
from cmpagl_core.encoders.cmpagl import CmpaglEncoder
from cmpagl_core.encoders.decode import decoded_batches
from cmpagl_core.encoders.encoder import collect
from cmpagl_core.errors import MismatchError
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.progress import Silent
from cmpagl_core.recipe import Recipe
from cmpagl_core.runs import Run, open_run
from cmpagl_core.search.gallery_source import dataset_source, folder_source
from cmpagl_core.search.index import GalleryIndex
from cmpagl_core.search.indexing import build_index
from cmpagl_core.training import loop
from tests.conftest import Told

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(
    squares: PreparedDataset, backbone_recipe: Callable[..., Recipe], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a run, and the cache that its training filled."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_curves", lambda root, progress: None)
        loop.fit(backbone_recipe(), squares, root / "run", Silent(), CPU, cache_root=root / "cache")
    return root


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    """The run, with a cache of the test's own."""
    for name in ("run", "cache"):
        shutil.copytree(trained / name, tmp_path / name)
    return open_run(tmp_path / "run")


def decoded_files(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that is decoded from now on."""
    found: list[Path] = []

    def noted(images: list[ImageRef], *rest: object) -> object:
        found.extend(image.path for image in images)
        return decoded_batches(images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("cmpagl_core.encoders.encode.decoded_batches", noted)
    return found


def index_of(run: Run, data: PreparedDataset, root: Path, told: Told, cache_root: Path | None) -> GalleryIndex:
    return build_index(CmpaglEncoder(run, told, CPU, cache_root), dataset_source(data), root, told).index


def test_an_index_takes_cached_maps_and_encodes_the_rest(
    run: Run, squares: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = index_of(run, squares, tmp_path / "plain", Told(), None)
    decoded, told = decoded_files(monkeypatch), Told()
    found = index_of(run, squares, tmp_path / "cached", told, tmp_path / "cache")
    assert told.messages[0] == "24 of 28 images have maps that a training cached"
    assert sorted(decoded) == sorted(squares.split("test").paths)
    assert list(found.image_ids) == list(expected.image_ids)
    assert found.stamps is not None
    assert expected.stamps is not None
    np.testing.assert_array_equal(found.stamps.sha256, expected.stamps.sha256)
    np.testing.assert_allclose(found.image_features, expected.image_features, atol=2e-6)  # whatever the path
    assert "the backbone's maps in half precision" in found.info.preprocessing
    assert np.ptp(expected.image_features, axis=0).max() > 0.03  # and images differ by much more


def test_onnx_runtime_gives_the_features_that_torch_gives_with_rounded_maps(
    run: Run, squares: PreparedDataset, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    images = squares.split("test").images
    features = {}
    for onnx in ("never", "write"):
        encoder = CmpaglEncoder(run, Told(), CPU, tmp_path / "none", onnx=onnx).with_tta("d4")
        features[encoder.fingerprint.precision] = collect(encoder.encode_images(images), len(images), Told())
    by_torch, by_runtime = features["fp32"], features["fp32 by ONNX Runtime"]
    assert (by_torch * by_runtime).sum(axis=1).min() > 0.9999
    np.testing.assert_allclose(by_runtime, by_torch, atol=1e-4)


def test_an_image_that_was_changed_is_encoded_again(
    run: Run, squares: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, source = squares.split("train").paths[0], dataset_source(squares)
    before = path.read_bytes()
    try:
        path.write_bytes(squares.split("test").paths[0].read_bytes())
        decoded = decoded_files(monkeypatch)
        encoder = CmpaglEncoder(run, Told(), CPU, tmp_path / "cache")
        build_index(encoder, source, tmp_path / "index", Told())
        assert path in decoded
        with pytest.raises(MismatchError, match="has changed since squares was prepared"):
            dataset_source(squares)
    finally:
        path.write_bytes(before)


def test_nothing_is_said_where_no_image_was_cached(run: Run, squares: PreparedDataset, tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.mkdir()
    (path / "new.png").write_bytes(squares.split("test").paths[0].read_bytes())
    told = Told()
    encoder = CmpaglEncoder(run, told, CPU, tmp_path / "cache")
    built = build_index(encoder, folder_source(path), tmp_path / "index", told)
    assert (built.encoded, told.messages) == (1, [])


def test_maps_of_other_weights_or_broken_ones_are_not_taken(run: Run, squares: PreparedDataset, tmp_path: Path) -> None:
    (home,) = (tmp_path / "cache" / "backbones").iterdir()
    told = Told()
    for shard in home.iterdir():
        shard.write_bytes(b"no tensors")
    index_of(run, squares, tmp_path / "broken", told, tmp_path / "cache")
    assert told.messages[0].startswith("cached maps are not used: ")
    home.rename(home.with_name("0" * 24))
    told = Told()
    index_of(run, squares, tmp_path / "other", told, tmp_path / "cache")
    assert told.messages == []
