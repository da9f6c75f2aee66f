"""An index holds what its pictures are, encodes only what is new, and survives interruptions and broken files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cmpagl_core import device
from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.encoders.cmpagl import CmpaglEncoder
from cmpagl_core.encoders.encode import EncodedBatch, encode_captions, encode_pictures
from cmpagl_core.encoders.export import export_features
from cmpagl_core.encoders.feature_set import load_feature_set
from cmpagl_core.encoders.tensor_file import open_tensor_file
from cmpagl_core.errors import DataError, InterruptedByUserError, MismatchError, UsageError
from cmpagl_core.imagery.stamps import stamp_file
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.progress import Silent
from cmpagl_core.recipe_files import override_recipe
from cmpagl_core.runs import Run, open_run, save_run
from cmpagl_core.search import index, indexing, known, marker
from cmpagl_core.search.index import index_of_features, open_index, save_index
from cmpagl_core.search.indexing import BuiltIndex, build_index, dataset_source, folder_source, seen_in
from cmpagl_core.search.search import search


class Told(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> Run:
    return open_run(tiny_run)


@pytest.fixture
def pictures(tiny_pictures: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pictures, tmp_path / "pictures"))


def files_of(root: Path) -> dict[str, bytes]:
    """Every file of an index but its marker, which says times."""
    return {path.name: path.read_bytes() for path in root.glob("*.safetensors")}


def make(run: Run, folder: Path, root: Path) -> BuiltIndex:
    return build_index(run, folder_source(folder), root, Silent())


def test_a_folder_index_holds_the_features_of_its_pictures_sorted_by_id(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    make(run, pictures, tmp_path / "index")
    found = open_index(tmp_path / "index")
    ids = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.jpg"))
    assert list(found.image_ids) == ids
    assert list(found.paths) == [str(pictures / image_id) for image_id in ids]
    expected = encode_pictures(run.load(), [pictures / image_id for image_id in ids], Silent())
    np.testing.assert_allclose(found.image_features, expected, atol=2e-6)
    assert found.captions_of(3) == []
    assert (found.info.kind, found.info.model_sha256) == ("folder", run.info.weights_sha256)


def test_a_data_set_index_holds_its_captions_each_encoded_once(run: Run, tiny_prepared: Path, tmp_path: Path) -> None:
    split = open_prepared(tiny_prepared).split("all")
    build_index(run, dataset_source(open_prepared(tiny_prepared)), tmp_path / "index", Silent())
    found = open_index(tmp_path / "index")
    for row in range(len(split)):
        place = list(found.image_ids).index(split.image_ids[row])
        assert found.captions_of(place) == [split.captions[caption] for caption in split.captions_of(row)]
    assert len(found.captions) == len(set(split.captions)) < len(split.captions)
    expected = encode_captions(run.load(), list(found.captions), Silent())
    np.testing.assert_allclose(found.text_features, expected, atol=2e-6)
    shared = list(found.captions).index("a square of kind 0")
    assert found.images_of(shared) == ("scene_00", "scene_01")


def test_a_second_run_encodes_nothing_and_writes_the_same_bytes(run: Run, pictures: Path, tmp_path: Path) -> None:
    make(run, pictures, tmp_path / "index")
    before = files_of(tmp_path / "index")
    told = Told()
    again = build_index(run, folder_source(pictures), tmp_path / "index", told)
    assert again.encoded == 0
    assert told.lines == ["12 of 12 pictures are unchanged and keep their features"]
    assert files_of(tmp_path / "index") == before


def test_an_index_of_another_precision_is_made_anew_and_says_why(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = replace(run, recipe=override_recipe(run.recipe, ["train.precision=bf16"]))
    monkeypatch.setattr(device, "_computes", lambda *_: True)
    make(half, pictures, tmp_path / "index")
    monkeypatch.setattr(device, "_computes", lambda *_: False)
    told = Told()
    built = build_index(half, folder_source(pictures), tmp_path / "index", told)
    assert (built.encoded, built.index.info.precision) == (12, "fp32")
    assert told.lines == ["index index is made anew: it was computed in bf16, and here it is fp32"]


def test_an_index_sees_pictures_as_asked_and_then_as_it_did(run: Run, pictures: Path, tmp_path: Path) -> None:
    root, paths = tmp_path / "index", sorted(pictures.rglob("*.jpg"))
    for views in ("one", "dihedral"):
        built = make(seen_in(run, root, views), pictures, root)
        expected = encode_pictures(run.load(), paths, Silent(), views=views)
        np.testing.assert_allclose(built.index.image_features, expected, atol=2e-6)
        assert built.encoded == 12
        assert make(seen_in(run, root, None), pictures, root).encoded == 0
    assert seen_in(run, tmp_path / "none yet", None) is run


def test_only_new_and_changed_pictures_are_encoded_again(run: Run, pictures: Path, tmp_path: Path) -> None:
    make(run, pictures, tmp_path / "index")
    files = sorted(pictures.rglob("*.jpg"))
    files[0].unlink()  # gone
    os.utime(files[1], ns=(1, 1))  # touched, not changed
    files[2].rename(pictures / "moved.jpg")  # the same picture elsewhere
    shutil.copyfile(files[3], files[4])  # another picture's content, which is known
    files[5].write_bytes(files[6].read_bytes() + b"tail")  # changed
    (pictures / "new.jpg").write_bytes(files[7].read_bytes() + b"other tail")  # new
    built = make(run, pictures, tmp_path / "index")
    assert built.encoded == 2
    anew = make(run, pictures, tmp_path / "anew")
    assert anew.encoded == 12
    found, expected = open_index(tmp_path / "index"), open_index(tmp_path / "anew")
    assert list(found.image_ids) == list(expected.image_ids)
    np.testing.assert_allclose(found.image_features, expected.image_features, atol=2e-6)
    for name in ("sizes", "mtimes_ns", "sha256"):
        ours, theirs = getattr(found.stamps, name), getattr(expected.stamps, name)
        np.testing.assert_array_equal(ours, theirs)


def other_run(run: Run, tmp_path: Path) -> Run:
    """A run with other weights."""
    recipe = run.recipe.model_copy(update={"train": run.recipe.train.model_copy(update={"seed": 5})})
    loaded = run.load()
    other_model = build_model(recipe, run.info.vocab_size, text_shape=loaded.model.text_encoder.shape)
    return save_run(tmp_path / "other", recipe, run.info, other_model.state_dict(), loaded.tokenizer.to_json())


def test_another_model_encodes_everything_again(run: Run, pictures: Path, tmp_path: Path) -> None:
    make(run, pictures, tmp_path / "index")
    other = other_run(run, tmp_path)
    built = make(other, pictures, tmp_path / "index")
    assert built.encoded == 12
    made = open_index(tmp_path / "index")
    assert made.info.model_sha256 == other.info.weights_sha256 != run.info.weights_sha256
    assert made.tower is not None
    assert open_tensor_file(made.tower).about["model_sha256"] == other.info.weights_sha256
    assert len(list(made.root.iterdir())) == 3


def test_broken_pictures_are_named_counted_and_left_out(run: Run, pictures: Path, tmp_path: Path) -> None:
    for number in range(25):
        (pictures / f"broken_{number:02d}.jpg").write_bytes(b"no picture")
    told = Told()
    built = build_index(run, folder_source(pictures), tmp_path / "index", told)
    assert (len(built.index), len(built.left_out)) == (12, 25)
    assert "broken_00.jpg" in told.lines[0]
    assert told.lines[-1] == f"left out: 5 more, listed in {tmp_path / 'index' / 'index.json'}"
    stored = json.loads((tmp_path / "index" / "index.json").read_text())
    assert len(stored["left_out"]) == 25
    assert stored["pictures"] == 12


def test_a_folder_without_a_readable_picture_makes_no_index(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError, match="no picture in"):
        folder_source(folder)
    (folder / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of the 1 pictures"):
        make(run, folder, tmp_path / "index")
    assert not (tmp_path / "index" / "index.json").exists()


def test_an_index_name_is_not_taken_over_by_another_folder(run: Run, pictures: Path, tmp_path: Path) -> None:
    make(run, pictures, tmp_path / "index")
    with pytest.raises(UsageError, match=r"holds the index of .*pictures, not of .*north; give another name"):
        make(run, pictures / "north", tmp_path / "index")


def test_an_interrupted_indexing_keeps_what_it_has(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = CmpaglEncoder.encode_images

    def broken_off(self: CmpaglEncoder, paths: list[Path]) -> Iterator[EncodedBatch]:
        for number, batch in enumerate(whole(self, paths)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(known, "_PICTURES_PER_PART", 4)
    monkeypatch.setattr(CmpaglEncoder, "encode_images", broken_off)
    with pytest.raises(InterruptedByUserError, match=r"12 pictures were being encoded.*the 10 that are done are kept"):
        make(run, pictures, tmp_path / "index")
    with pytest.raises(DataError):
        open_index(tmp_path / "index")
    monkeypatch.setattr(CmpaglEncoder, "encode_images", whole)
    built = make(run, pictures, tmp_path / "index")
    assert built.encoded == 2
    assert not (tmp_path / "index" / "parts").exists()
    anew = make(run, pictures, tmp_path / "anew")
    np.testing.assert_allclose(built.index.image_features, anew.index.image_features, atol=2e-6)


def test_a_broken_part_or_index_is_made_anew(run: Run, pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "index"
    make(run, pictures, root)
    (root / "parts").mkdir()
    (root / "parts" / "000000000.safetensors").write_bytes(b"cut off")
    features = next(root.glob("features-*.safetensors"))
    features.write_bytes(b"cut off")
    with pytest.raises(MismatchError, match=r"features-\w+\.safetensors is not the file that index\.json beside it"):
        open_index(root)
    features.unlink()
    with pytest.raises(DataError, match=r"features-\w+\.safetensors does not exist"):
        open_index(root)
    assert make(run, pictures, root).encoded == 12
    assert len(open_index(root)) == 12


def test_index_files_that_do_not_belong_together_are_refused(run: Run, pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "index"
    make(run, pictures, root)
    stored = json.loads((root / "index.json").read_text())
    for wrong, error, said in (
        ({"model_sha256": "0" * 64}, MismatchError, "do not belong together"),
        ({"format_version": 1}, MismatchError, "format_version is 1, this cmpagl reads 2; make it again"),
        ({"run": 3}, DataError, "does not say where it comes from"),
        ({"files": {"features": {"name": "../x"}}}, DataError, "does not name its files"),
    ):
        (root / "index.json").write_text(json.dumps(stored | wrong))
        with pytest.raises(error, match=said):
            open_index(root)
    (root / "index.json").write_text("[]")
    with pytest.raises(MismatchError, match="format_version is None"):
        open_index(root)


def test_captions_of_pictures_that_are_not_there_are_refused(run: Run, pictures: Path, tmp_path: Path) -> None:
    built = make(run, pictures, tmp_path / "index").index
    wrong = replace(built, caption_image=np.array([12]), caption_text=np.array([0]), text_features=built.image_features)
    with pytest.raises(DataError, match="pictures that are not there"):
        save_index(replace(wrong, captions=built.paths), "a test", [], None)


def test_a_copied_index_is_opened_by_its_hashes(run: Run, pictures: Path, tmp_path: Path) -> None:
    made = make(run, pictures, tmp_path / "index").index
    copied = Path(shutil.copytree(tmp_path / "index", tmp_path / "copy", copy_function=shutil.copyfile))
    np.testing.assert_array_equal(open_index(copied).image_features, made.image_features)
    features = next(copied.glob("features-*"))
    content = bytearray(features.read_bytes())
    content[-1] ^= 1
    features.write_bytes(content)
    with pytest.raises(MismatchError, match="is not the file that"):
        open_index(copied)


def test_an_index_made_anew_is_old_or_new_when_it_is_killed(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "index"
    before = make(run, pictures, root).index

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(marker, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            make(other_run(run, tmp_path), pictures, root)
    found = open_index(root)
    assert found.info == before.info
    np.testing.assert_array_equal(found.image_features, before.image_features)
    assert make(other_run(run, tmp_path), pictures, root).index.info != before.info
    assert len(list(root.iterdir())) == 3


def test_a_reader_that_comes_while_an_index_is_made_anew_gets_one_of_both(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "index"
    make(run, pictures, root)
    first = marker.read_marker(root)
    after = make(other_run(run, tmp_path), pictures, root).index
    looks = iter([first])
    monkeypatch.setattr(index, "read_marker", lambda root: next(looks, None) or marker.read_marker(root))
    assert open_index(root).info == after.info


def test_features_are_those_of_the_content_that_the_index_remembers(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, gone, other = sorted(pictures.rglob("*.jpg"))[:3]
    whole = CmpaglEncoder.encode_images

    def late(self: CmpaglEncoder, paths: list[Path]) -> Iterator[EncodedBatch]:
        shutil.copyfile(other, changed)  # after the index has looked at it, and before it is decoded
        gone.unlink()
        return whole(self, paths)

    monkeypatch.setattr(CmpaglEncoder, "encode_images", late)
    built = make(run, pictures, tmp_path / "index")
    assert [item.path for item in built.left_out] == [gone]
    assert len(built.index) == built.encoded == 11
    assert built.index.stamps is not None
    row, same = (list(built.index.paths).index(str(path)) for path in (changed, other))
    assert list(built.index.stamps)[row] == stamp_file(changed)
    np.testing.assert_allclose(built.index.image_features[row], built.index.image_features[same], atol=2e-6)
    monkeypatch.undo()
    assert make(run, pictures, tmp_path / "index").encoded == 0


def test_a_picture_that_stays_broken_is_not_tried_again(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = pictures / "broken.jpg"
    broken.write_bytes(b"no picture")
    said = make(run, pictures, tmp_path / "index").left_out[0].why
    with monkeypatch.context() as patched:
        patched.setattr(Run, "load", None)  # no model is needed
        assert [item.why for item in make(run, pictures, tmp_path / "index").left_out] == [said]
        os.utime(broken, ns=(1, 1))
        assert [item.why for item in make(run, pictures, tmp_path / "index").left_out] == [said]
        broken.rename(pictures / "moved.jpg")
        assert make(run, pictures, tmp_path / "index").left_out[0].why == said.replace("broken.jpg", "moved.jpg", 1)
    shutil.copyfile(next(pictures.rglob("scene_03.jpg")), broken)
    with Image.open(broken) as opened:
        opened.rotate(90).save(pictures / "moved.jpg")
    assert make(run, pictures, tmp_path / "index").encoded == 1
    stored = json.loads((tmp_path / "index" / "index.json").read_text())
    assert stored["left_out"] == []


def test_another_reader_tries_broken_pictures_again(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "broken.jpg").write_bytes(b"no picture")
    make(run, pictures, tmp_path / "index")
    monkeypatch.setattr(indexing, "reader_version", lambda: "another")
    monkeypatch.setattr(Run, "load", lambda *_: pytest.fail("tried", pytrace=False))
    with pytest.raises(pytest.fail.Exception, match="tried"):
        make(run, pictures, tmp_path / "index")


def test_a_run_that_ranks_nothing_by_its_features_is_refused(run: Run, pictures: Path, tmp_path: Path) -> None:
    losses = run.recipe.losses.model_copy(update={"pre_alignment": False})
    blind = Run(run.root, run.recipe.model_copy(update={"losses": losses}), run.info)
    with pytest.raises(UsageError, match="without pre-alignment"):
        make(blind, pictures, tmp_path / "index")


def test_a_feature_set_is_searched_like_an_index(run: Run, tiny_prepared: Path, tmp_path: Path) -> None:
    prepared = open_prepared(tiny_prepared)
    export_features(run, prepared.split("all"), tmp_path / "f.safetensors", Silent(), torch.device("cpu"))
    build_index(run, dataset_source(prepared), tmp_path / "index", Silent())
    exported = index_of_features(tmp_path / "f.safetensors", load_feature_set(tmp_path / "f.safetensors"))
    indexed = open_index(tmp_path / "index")
    query = np.asarray(indexed.text_features[4])
    for ours, theirs in zip(search(exported, query, 12), search(indexed, query, 12), strict=True):
        assert (ours.rank, ours.image_id, ours.path, ours.captions) == (
            theirs.rank, theirs.image_id, theirs.path, theirs.captions,
        )  # fmt: skip
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)
