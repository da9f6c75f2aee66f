"""An index of a run holds that run's features of its images and captions, in the views and precision that it says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmpagl_core import device
from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.encoders.cmpagl import CmpaglEncoder
from cmpagl_core.encoders.encode import encode_captions, encode_images
from cmpagl_core.encoders.export import export_features
from cmpagl_core.encoders.feature_set import load_feature_set
from cmpagl_core.encoders.split_encoder import SplitEncoder
from cmpagl_core.encoders.tensor_file import open_tensor_file
from cmpagl_core.errors import UsageError
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.progress import Silent
from cmpagl_core.recipe_files import override_recipe
from cmpagl_core.runs import Run, open_run, save_run
from cmpagl_core.search.feature_gallery import index_of_features
from cmpagl_core.search.gallery_source import dataset_source, folder_source
from cmpagl_core.search.index import open_index
from cmpagl_core.search.indexing import BuiltIndex, build_index
from cmpagl_core.search.query import TextQuery
from cmpagl_core.search.searcher import Searcher
from tests.conftest import Told


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> Run:
    return open_run(tiny_run)


@pytest.fixture
def image_folder(tiny_images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_images, tmp_path / "images"))


def make(run: Run, folder: Path, root: Path) -> BuiltIndex:
    return build_index(CmpaglEncoder(run, Silent()), folder_source(folder), root, Silent())


def test_a_folder_index_holds_the_features_of_its_images_sorted_by_id(
    run: Run, image_folder: Path, tmp_path: Path
) -> None:
    make(run, image_folder, tmp_path / "index")
    found = open_index(tmp_path / "index")
    ids = sorted(path.relative_to(image_folder).as_posix() for path in image_folder.rglob("*.jpg"))
    assert list(found.image_ids) == ids
    assert list(found.paths) == [str(image_folder / image_id) for image_id in ids]
    expected = encode_images(run.load(), [ImageRef(name, image_folder / name) for name in ids], Silent())
    np.testing.assert_allclose(found.image_features, expected, atol=2e-6)
    assert found.captions_of(3) == []
    assert (found.info.kind, found.info.model_sha256) == ("folder", run.info.weights_sha256)


def test_a_data_set_index_holds_its_captions_each_encoded_once(run: Run, tiny_prepared: Path, tmp_path: Path) -> None:
    split = open_prepared(tiny_prepared).split("all")
    build_index(
        CmpaglEncoder(run, Silent()), dataset_source(open_prepared(tiny_prepared)), tmp_path / "index", Silent()
    )
    found = open_index(tmp_path / "index")
    for row in range(len(split)):
        place = list(found.image_ids).index(split.image_ids[row])
        assert found.captions_of(place) == [split.captions[caption] for caption in split.captions_of(row)]
    assert len(found.captions) == len(set(split.captions)) < len(split.captions)
    expected = encode_captions(run.load(), list(found.captions), Silent())
    np.testing.assert_allclose(found.text_features, expected, atol=2e-6)
    shared = list(found.captions).index("a square of kind 0")
    assert found.images_of(shared) == ("scene_00", "scene_01")


def test_an_index_of_another_precision_is_made_anew_and_says_why(
    run: Run, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = replace(run, recipe=override_recipe(run.recipe, ["train.precision=bf16"]))
    monkeypatch.setattr(device, "_computes", lambda *_: True)
    make(half, image_folder, tmp_path / "index")
    monkeypatch.setattr(device, "_computes", lambda *_: False)
    told = Told()
    built = build_index(CmpaglEncoder(half, told), folder_source(image_folder), tmp_path / "index", told)
    assert (built.encoded, built.index.info.precision) == (12, "fp32")
    assert told.messages == ["index index is rebuilt: it was computed in bf16, and this machine uses fp32"]


def test_an_encoder_uses_the_test_time_augmentation_that_an_index_says(
    run: Run, image_folder: Path, tmp_path: Path
) -> None:
    source, plain = folder_source(image_folder), CmpaglEncoder(run, Silent())
    images = [entry.image for entry in source.entries]
    for tta in ("none", "d4"):
        built = build_index(plain.with_tta(tta), source, tmp_path / "index", Silent())
        expected = encode_images(run.load(), images, Silent(), tta=tta)
        np.testing.assert_allclose(built.index.image_features, expected, atol=2e-6)
        assert built.encoded == 12
        again = plain.preparing_as(built.index.info.preprocessing)
        assert build_index(again, source, tmp_path / "index", Silent()).encoded == 0
    assert plain.preparing_as("otherwise") is plain


def other_run(run: Run, tmp_path: Path) -> Run:
    """A run with other weights."""
    recipe = run.recipe.model_copy(update={"train": run.recipe.train.model_copy(update={"seed": 5})})
    loaded = run.load()
    other_model = build_model(recipe, run.info.vocab_size, text_shape=loaded.model.text_encoder.shape)
    return save_run(
        tmp_path / "other", recipe, run.info, other_model.state_dict(), loaded.tokenizer.to_json(), run.seen
    )


def test_another_model_encodes_everything_again(run: Run, image_folder: Path, tmp_path: Path) -> None:
    make(run, image_folder, tmp_path / "index")
    other = other_run(run, tmp_path)
    built = make(other, image_folder, tmp_path / "index")
    assert built.encoded == 12
    made = open_index(tmp_path / "index")
    assert made.info.model_sha256 == other.info.weights_sha256 != run.info.weights_sha256
    assert made.tower is not None
    assert open_tensor_file(made.tower).about["model_sha256"] == other.info.weights_sha256
    assert len(list(made.root.iterdir())) == 3


def test_a_run_that_ranks_nothing_by_its_features_is_refused(run: Run, image_folder: Path, tmp_path: Path) -> None:
    losses = run.recipe.losses.model_copy(update={"pre_alignment": False})
    blind = Run(run.root, run.recipe.model_copy(update={"losses": losses}), run.info)
    with pytest.raises(UsageError, match="without pre-alignment"):
        make(blind, image_folder, tmp_path / "index")


def test_a_feature_set_is_searched_like_an_index(run: Run, tiny_prepared: Path, tmp_path: Path) -> None:
    prepared = open_prepared(tiny_prepared)
    export_features(SplitEncoder(run), prepared.split("all"), tmp_path / "f.safetensors")
    build_index(CmpaglEncoder(run, Silent()), dataset_source(prepared), tmp_path / "index", Silent())
    exported = index_of_features(tmp_path / "f.safetensors", load_feature_set(tmp_path / "f.safetensors"))
    indexed = open_index(tmp_path / "index")
    query = [TextQuery("a square of kind 2")]
    one, other = (Searcher(gallery, lambda: CmpaglEncoder(run, Silent()), Silent()) for gallery in (exported, indexed))
    for ours, theirs in zip(one.search(query, 12)[0], other.search(query, 12)[0], strict=True):
        assert replace(ours, score=theirs.score) == theirs
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)
