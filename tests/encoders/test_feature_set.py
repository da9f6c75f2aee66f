"""A feature set comes back as it was, byte for byte the same each time, and a wrong one is refused."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from cmpagl_core import device
from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.encoders.cmpagl import CmpaglEncoder
from cmpagl_core.encoders.encode import encode_captions, encode_images
from cmpagl_core.encoders.export import export_features
from cmpagl_core.encoders.feature_set import (
    FeatureInfo,
    FeatureSet,
    load_feature_set,
    require_same_model,
    save_feature_set,
)
from cmpagl_core.encoders.split_encoder import SplitEncoder
from cmpagl_core.encoders.tensor_file import open_tensor_file, write_tensor_file
from cmpagl_core.errors import CmpaglError, DataError, MismatchError
from cmpagl_core.processes import Process, own_process
from cmpagl_core.progress import Silent
from cmpagl_core.recipe_files import override_recipe
from cmpagl_core.runs import open_run
from cmpagl_core.search.gallery_source import dataset_source
from cmpagl_core.search.indexing import build_index

INFO = FeatureInfo("run", "a" * 64, "ucm", "b" * 64, "test", "c" * 64, "as usual", "bf16")


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def small_set(**changes: Any) -> FeatureSet:
    parts: dict[str, Any] = {
        "image_features": unit(3, 8, 0),
        "text_features": unit(4, 8, 1),
        "text_image": np.array([0, 0, 2, 1]),
        "image_ids": ("a", "b", "\N{AIRPLANE}"),
        "image_sha256": ("a" * 64, "b" * 64, "0123456789abcdef" * 4),
        "paths": ("/x/a.jpg", "/x/b.jpg", "/x/c.jpg"),
        "captions": ("one", "two", "", "emoji \N{AIRPLANE}"),
        "info": INFO,
    }
    return FeatureSet(**(parts | changes))


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    own = own_process()
    dead = Process(own.host, 2**22 + 1, 1)  # no pid is that high
    left, others = (tmp_path / f".f.safetensors.{owner.tag}.x.partial" for owner in (dead, own))
    left.write_text("half")
    others.write_text("half")
    save_feature_set(tmp_path / "f.safetensors", small_set())
    assert sorted(tmp_path.iterdir()) == [others, tmp_path / "f.safetensors"]


def test_a_feature_set_comes_back_as_it_was(tmp_path: Path) -> None:
    before = small_set()
    save_feature_set(tmp_path / "f.safetensors", before)
    after = load_feature_set(tmp_path / "f.safetensors")
    for name in ("image_features", "text_features", "text_image"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    for name in ("image_ids", "image_sha256", "paths", "captions", "info"):
        assert getattr(after, name) == getattr(before, name)
    assert load_file(tmp_path / "f.safetensors")["image_features"].shape == (3, 8)


def test_a_split_without_captions_is_a_feature_set_too(tmp_path: Path) -> None:
    empty = small_set(text_features=np.empty((0, 8), np.float32), text_image=np.empty(0, np.int64), captions=())
    save_feature_set(tmp_path / "f.safetensors", empty)
    assert load_feature_set(tmp_path / "f.safetensors").captions == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_ids": ("a", "b")}, "3 images have 2 ids"),
        ({"image_sha256": ("a" * 64,)}, "3 images have 3 ids, 3 paths and 1 hashes"),
        ({"image_sha256": ("a" * 64, "b" * 64, "c")}, "image_sha256 has an entry that is not a hash"),
        ({"image_ids": ("a", "b", "a")}, "two images have the same image_id"),
        ({"captions": ("one",)}, "4 text features have 1 captions"),
        ({"text_image": np.array([0, 0, 2, 3])}, "row 3 or 0 of 3"),
        ({"text_image": np.array([0, 0, 2, -1])}, "row 2 or -1 of 3"),
        ({"text_features": unit(4, 7, 0)}, "differ in width"),
        ({"image_features": unit(3, 8, 0) * 2}, "image_features has rows that are not finite or not of unit length"),
        ({"text_features": unit(4, 8, 0) * np.nan}, "text_features has rows"),
        ({"text_image": np.array([0, 0, 2, 1], dtype=np.int32)}, "not float32 and int64"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small_set(**changes)


def rewritten(path: Path, arrays: dict[str, Any] | None = None, about: dict[str, Any] | None = None) -> Path:
    file = open_tensor_file(path)
    kept = {name: array for name, array in (file.arrays | (arrays or {})).items() if array is not None}
    write_tensor_file(path, {name: np.array(array) for name, array in kept.items()}, file.about | (about or {}))
    return path


@pytest.mark.parametrize(
    ("arrays", "about", "kind", "said"),
    [
        ({"image_features": None}, {}, DataError, "no tensor 'image_features'"),
        ({"text_image": np.array([9, 9, 9, 9])}, {}, DataError, "row 9"),
        ({"text_image": np.zeros(3, np.int64)}, {}, DataError, r"not <i8 of \(4\)"),
        ({"image_features": np.zeros((3, 8), np.float32)}, {}, DataError, "unit length"),
        ({"image_features": np.zeros((3, 8), np.float64)}, {}, DataError, "is float64"),
        ({}, {"kind": "gallery_index"}, DataError, "is not a feature set but 'gallery_index'"),
        ({}, {"format_version": 99}, MismatchError, "format_version is 99, this cmpagl reads 3"),
        ({}, {"model_sha256": 3}, DataError, "model_sha256 is 3"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(
    tmp_path: Path, arrays: dict[str, Any], about: dict[str, Any], kind: type[CmpaglError], said: str
) -> None:
    path = tmp_path / "f.safetensors"
    save_feature_set(path, small_set())
    with pytest.raises(kind, match=said) as error:
        load_feature_set(rewritten(path, arrays, about))
    assert "f.safetensors" in str(error.value)


def test_a_runs_weights_are_no_feature_set(tiny_run: Path) -> None:
    with pytest.raises(DataError, match="not a feature set"):
        load_feature_set(tiny_run / "model.safetensors")


def test_features_of_another_model_are_refused_with_both_named() -> None:
    require_same_model("a" * 64, "a" * 64, "this", "that")
    with pytest.raises(
        MismatchError, match=r"ucm\.safetensors has features of another model \(aaaaaaaaaaaa\) than run"
    ):
        require_same_model("a" * 64, "b" * 64, "ucm.safetensors", "run ucm-cpu")


def test_an_export_is_what_the_model_says_and_byte_identical_when_repeated(
    tiny_run: Path, tiny_prepared: Path, tmp_path: Path
) -> None:
    run, prepared = open_run(tiny_run), open_prepared(tiny_prepared)
    split = prepared.split("test")
    made = export_features(SplitEncoder(run), split, tmp_path / "1", prepared.manifest.sha256)
    export_features(SplitEncoder(run), split, tmp_path / "2", prepared.manifest.sha256)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()

    read, loaded = load_feature_set(tmp_path / "1"), run.load()
    np.testing.assert_allclose(read.image_features, encode_images(loaded, split.images, Silent()), atol=2e-6)
    np.testing.assert_allclose(read.text_features, encode_captions(loaded, split.captions, Silent()), atol=2e-6)
    np.testing.assert_array_equal(read.text_image, split.caption_image)
    assert read.info == made.info
    assert (read.info.model_sha256, read.info.split) == (run.info.weights_sha256, "test")
    assert read.info.manifest_sha256 == prepared.manifest.sha256
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in read.paths)


def test_an_export_and_an_index_name_the_precision_that_they_were_computed_in(
    tiny_run: Path, tiny_prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, prepared = open_run(tiny_run), open_prepared(tiny_prepared)
    half = replace(run, recipe=override_recipe(run.recipe, ["train.precision=bf16"]))
    monkeypatch.setattr(device, "_computes", lambda *_: False)
    made = export_features(SplitEncoder(half), prepared.split("test"), tmp_path / "f")
    index = build_index(CmpaglEncoder(half, Silent()), dataset_source(prepared), tmp_path / "index", Silent()).index
    assert made.info.precision == index.info.precision == "fp32"


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    large = small_set(image_features=unit(3, 4096, 0), text_features=unit(4, 4096, 1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CmpaglError, match="cannot write"):
            save_feature_set(tmp_path / "f.safetensors", large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
