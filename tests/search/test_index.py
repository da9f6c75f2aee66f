"""An index holds what its images are, encodes only what is new, and survives interruptions, kills and broken files."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmpagl_core.encoders.encoder import Encoder, Features, collect
from cmpagl_core.errors import DataError, InterruptedByUserError, MismatchError, UsageError
from cmpagl_core.imagery import stamps
from cmpagl_core.imagery.image_ref import ImageRef, Window
from cmpagl_core.imagery.stamps import stamp_file
from cmpagl_core.progress import Silent
from cmpagl_core.search import feature_cache, index, indexing, marker
from cmpagl_core.search.gallery_source import Entry, GallerySource, folder_source
from cmpagl_core.search.index import open_index, save_index
from cmpagl_core.search.indexing import BuiltIndex, build_index


class Told(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def encoder(fake_encoder: Any) -> Any:
    return fake_encoder()


@pytest.fixture
def image_folder(tiny_images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_images, tmp_path / "images"))


def files_of(root: Path) -> dict[str, bytes]:
    """Every file of an index but its marker, which says times."""
    return {path.name: path.read_bytes() for path in root.glob("*.safetensors")}


def make(encoder: Encoder, folder: Path, root: Path) -> BuiltIndex:
    return build_index(encoder, folder_source(folder), root, Silent())


def features_of(encoder: Encoder, *paths: Path) -> Features:
    return collect(encoder.encode_images([ImageRef(path.name, path) for path in paths]), len(paths), Silent())


def test_a_second_run_encodes_nothing_and_writes_the_same_bytes(
    encoder: Any, image_folder: Path, tmp_path: Path
) -> None:
    make(encoder, image_folder, tmp_path / "index")
    before = files_of(tmp_path / "index")
    told = Told()
    again = build_index(encoder, folder_source(image_folder), tmp_path / "index", told)
    assert again.encoded == 0
    assert told.lines == ["12 of 12 images are unchanged and keep their features"]
    assert files_of(tmp_path / "index") == before


def test_only_new_and_changed_images_are_encoded_again(encoder: Any, image_folder: Path, tmp_path: Path) -> None:
    make(encoder, image_folder, tmp_path / "index")
    files = sorted(image_folder.rglob("*.jpg"))
    files[0].unlink()  # gone
    os.utime(files[1], ns=(1, 1))  # touched, not changed
    files[2].rename(image_folder / "moved.jpg")  # the same image elsewhere
    shutil.copyfile(files[3], files[4])  # another image's content, which is known
    files[5].write_bytes(files[6].read_bytes() + b"tail")  # changed
    (image_folder / "new.jpg").write_bytes(files[7].read_bytes() + b"other tail")  # new
    built = make(encoder, image_folder, tmp_path / "index")
    assert built.encoded == 2
    anew = make(encoder, image_folder, tmp_path / "anew")
    assert anew.encoded == 12
    found, expected = open_index(tmp_path / "index"), open_index(tmp_path / "anew")
    assert list(found.image_ids) == list(expected.image_ids)
    np.testing.assert_allclose(found.image_features, expected.image_features, atol=2e-6)
    for name in ("sizes", "mtimes_ns", "sha256"):
        ours, theirs = getattr(found.stamps, name), getattr(expected.stamps, name)
        np.testing.assert_array_equal(ours, theirs)


def test_broken_images_are_named_counted_and_left_out(encoder: Any, image_folder: Path, tmp_path: Path) -> None:
    for number in range(25):
        (image_folder / f"broken_{number:02d}.jpg").write_bytes(b"no image")
    told = Told()
    built = build_index(encoder, folder_source(image_folder), tmp_path / "index", told)
    assert (len(built.index), len(built.left_out)) == (12, 25)
    assert "broken_00.jpg" in told.lines[0]
    assert told.lines[-1] == f"left out: 5 more, listed in {tmp_path / 'index' / 'index.json'}"
    stored = json.loads((tmp_path / "index" / "index.json").read_text())
    assert len(stored["left_out"]) == 25
    assert stored["images"] == 12


def test_a_folder_without_a_readable_image_makes_no_index(encoder: Any, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError, match="no image in"):
        folder_source(folder)
    (folder / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 1 images"):
        make(encoder, folder, tmp_path / "index")
    assert not (tmp_path / "index" / "index.json").exists()


def test_an_index_name_is_not_taken_over_by_another_folder(encoder: Any, image_folder: Path, tmp_path: Path) -> None:
    make(encoder, image_folder, tmp_path / "index")
    with pytest.raises(UsageError, match=r"is the index of .*images, not of .*north; choose another name"):
        make(encoder, image_folder / "north", tmp_path / "index")


def test_an_interrupted_indexing_keeps_what_it_has(
    encoder: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoder.encode_images

    def broken_off(images: list[ImageRef]) -> Iterator[Any]:
        for number, batch in enumerate(whole(images)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(feature_cache, "_IMAGES_PER_PART", 4)
    with monkeypatch.context() as patched:
        patched.setattr(encoder, "encode_images", broken_off)
        with pytest.raises(
            InterruptedByUserError, match=r"interrupted while encoding 12 images .*the 10 finished ones are kept"
        ):
            make(encoder, image_folder, tmp_path / "index")
    with pytest.raises(DataError):
        open_index(tmp_path / "index")
    built = make(encoder, image_folder, tmp_path / "index")
    assert built.encoded == 2
    assert not (tmp_path / "index" / "parts").exists()
    anew = make(encoder, image_folder, tmp_path / "anew")
    np.testing.assert_array_equal(built.index.image_features, anew.index.image_features)


def test_a_broken_part_or_index_is_made_anew(encoder: Any, image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "index"
    make(encoder, image_folder, root)
    (root / "parts").mkdir()
    (root / "parts" / "000000000.safetensors").write_bytes(b"cut off")
    features = next(root.glob("features-*.safetensors"))
    features.write_bytes(b"cut off")
    with pytest.raises(MismatchError, match=r"features-\w+\.safetensors is not the file that index\.json beside it"):
        open_index(root)
    features.unlink()
    with pytest.raises(DataError, match=r"features-\w+\.safetensors does not exist"):
        open_index(root)
    assert make(encoder, image_folder, root).encoded == 12
    assert len(open_index(root)) == 12


def test_index_files_that_do_not_belong_together_are_refused(encoder: Any, image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "index"
    make(encoder, image_folder, root)
    stored = json.loads((root / "index.json").read_text())
    for wrong, error, said in (
        ({"model_sha256": "0" * 64}, MismatchError, "do not belong together"),
        ({"format_version": 1}, MismatchError, "format_version is 1, this cmpagl reads 5; rebuild it"),
        ({"model_source": 3}, DataError, "does not record its origin"),
        ({"files": {"features": {"name": "../x"}}}, DataError, "does not list its files"),
    ):
        (root / "index.json").write_text(json.dumps(stored | wrong))
        with pytest.raises(error, match=said):
            open_index(root)
    (root / "index.json").write_text("[]")
    with pytest.raises(MismatchError, match="format_version is None"):
        open_index(root)


def test_captions_of_images_that_are_not_there_are_refused(encoder: Any, image_folder: Path, tmp_path: Path) -> None:
    built = make(encoder, image_folder, tmp_path / "index").index
    wrong = replace(built, caption_image=np.array([12]), caption_text=np.array([0]), text_features=built.image_features)
    with pytest.raises(DataError, match="images that do not exist"):
        save_index(replace(wrong, captions=built.paths), "a test", [], {})


def test_a_copied_index_is_opened_by_its_hashes(encoder: Any, image_folder: Path, tmp_path: Path) -> None:
    made = make(encoder, image_folder, tmp_path / "index").index
    copied = Path(shutil.copytree(tmp_path / "index", tmp_path / "copy", copy_function=shutil.copyfile))
    np.testing.assert_array_equal(open_index(copied).image_features, made.image_features)
    features = next(copied.glob("features-*"))
    content = bytearray(features.read_bytes())
    content[-1] ^= 1
    features.write_bytes(content)
    with pytest.raises(MismatchError, match="is not the file that"):
        open_index(copied)


def test_an_index_made_anew_is_old_or_new_when_it_is_killed(
    encoder: Any, fake_encoder: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "index"
    before = make(encoder, image_folder, root).index

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(marker, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            make(fake_encoder("another"), image_folder, root)
    found = open_index(root)
    assert found.info == before.info
    np.testing.assert_array_equal(found.image_features, before.image_features)
    assert make(fake_encoder("another"), image_folder, root).index.info != before.info
    assert len(list(root.iterdir())) == 2


def test_a_reader_that_comes_while_an_index_is_made_anew_gets_one_of_both(
    encoder: Any, fake_encoder: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "index"
    make(encoder, image_folder, root)
    first = marker.read_marker(root)
    after = make(fake_encoder("another"), image_folder, root).index
    looks = iter([first])
    monkeypatch.setattr(index, "read_marker", lambda root: next(looks, None) or marker.read_marker(root))
    assert open_index(root).info == after.info


def test_features_are_those_of_the_content_that_the_index_remembers(
    encoder: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, gone, other = sorted(image_folder.rglob("*.jpg"))[:3]
    whole = encoder.encode_images

    def late(images: list[ImageRef]) -> Iterator[Any]:
        shutil.copyfile(other, changed)  # after the index has looked at it, and before it is decoded
        gone.unlink()
        return whole(images)

    with monkeypatch.context() as patched:
        patched.setattr(encoder, "encode_images", late)
        built = make(encoder, image_folder, tmp_path / "index")
    assert [item.image.path for item in built.left_out] == [gone]
    assert len(built.index) == built.encoded == 11
    assert built.index.stamps is not None
    row = list(built.index.paths).index(str(changed))
    assert list(built.index.stamps)[row] == stamp_file(changed)
    np.testing.assert_array_equal(built.index.image_features[row], features_of(encoder, other)[0])
    assert make(encoder, image_folder, tmp_path / "index").encoded == 0


def test_an_image_that_stays_broken_is_not_tried_again(encoder: Any, image_folder: Path, tmp_path: Path) -> None:
    broken = image_folder / "broken.jpg"
    broken.write_bytes(b"no image")
    said = make(encoder, image_folder, tmp_path / "index").left_out[0].why
    encoder.images.clear()
    assert [item.why for item in make(encoder, image_folder, tmp_path / "index").left_out] == [said]
    os.utime(broken, ns=(1, 1))
    assert [item.why for item in make(encoder, image_folder, tmp_path / "index").left_out] == [said]
    broken.rename(image_folder / "moved.jpg")
    assert make(encoder, image_folder, tmp_path / "index").left_out[0].why == said.replace("broken.jpg", "moved.jpg", 1)
    assert encoder.images == []
    shutil.copyfile(next(image_folder.rglob("scene_03.jpg")), broken)
    with Image.open(broken) as opened:
        opened.rotate(90).save(image_folder / "moved.jpg")
    assert make(encoder, image_folder, tmp_path / "index").encoded == 1
    stored = json.loads((tmp_path / "index" / "index.json").read_text())
    assert stored["left_out"] == []


def test_a_clock_that_goes_backwards_loses_and_repeats_nothing(
    encoder: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "index"
    assert make(encoder, image_folder, root).encoded == 12
    monkeypatch.setattr(marker, "now", lambda: "2001-01-01T00:00:00.000000+00:00")
    new, changed = image_folder / "new.jpg", next(image_folder.rglob("scene_03.jpg"))
    shutil.copyfile(next(image_folder.rglob("scene_04.jpg")), new)
    with Image.open(changed) as opened:
        opened.rotate(90).save(changed)
    for path in (new, changed):  # older than all that the index knows
        os.utime(path, ns=(1, 1))
    assert make(encoder, image_folder, root).encoded == 1  # the new one is known by its content
    assert make(encoder, image_folder, root).encoded == 0
    index = open_index(root)
    assert len(index) == 13
    assert index.stamps is not None
    assert list(index.stamps)[list(index.paths).index(str(changed))] == stamp_file(changed)


def test_an_image_that_the_disk_did_not_give_is_tried_again(
    encoder: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = next(image_folder.rglob("scene_03.jpg"))

    class OnBadSectors(BufferedReader):
        """Is hashed (by readinto), and not decoded."""

        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(stamps, "open_file", lambda path: OnBadSectors(FileIO(path)) if path == bad else path.open("rb"))
        left_out = make(encoder, image_folder, tmp_path / "index").left_out
    assert [item.why for item in left_out] == [f"{bad} cannot be read (Input/output error)"]
    assert make(encoder, image_folder, tmp_path / "index").encoded == 1


def test_another_reader_tries_broken_images_again(
    encoder: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image_folder / "broken.jpg").write_bytes(b"no image")
    make(encoder, image_folder, tmp_path / "index")
    encoder.images.clear()
    monkeypatch.setattr(indexing, "reader_version", lambda: "another")
    make(encoder, image_folder, tmp_path / "index")
    assert [image.path for image in encoder.images] == [image_folder / "broken.jpg"]


def test_pieces_of_one_file_are_images_of_their_own(encoder: Any, image_folder: Path, tmp_path: Path) -> None:
    path = next(image_folder.rglob("scene_00.jpg"))
    refs = [ImageRef(f"scene {left:02d}", path, Window(left, 10, 40, 60)) for left in (0, 20, 40)]
    images = [*refs, ImageRef("scene whole", path), ImageRef("scene zu weit", path, Window(50, 0, 40, 40))]
    source = GallerySource("folder", str(path), "", "", tuple(Entry(image) for image in images))
    built = build_index(encoder, source, tmp_path / "index", Silent())
    assert [item.image for item in built.left_out] == images[4:]
    assert [built.index.image(row) for row in range(len(built.index))] == images[:4]
    with Image.open(path) as opened:
        for row, left in enumerate((0, 20, 40)):
            opened.convert("RGB").crop((left, 10, left + 40, 70)).save(tmp_path / "cut.png")
            np.testing.assert_array_equal(
                built.index.image_features[row], features_of(encoder, tmp_path / "cut.png")[0]
            )
    encoder.images.clear()
    again = build_index(encoder, source, tmp_path / "index", Silent())
    assert (again.encoded, encoder.images, len(again.left_out)) == (0, [], 1)
    moved = replace(source, entries=tuple(Entry(replace(image, path=tmp_path / "b.jpg")) for image in images))
    shutil.copyfile(path, tmp_path / "b.jpg")
    assert build_index(encoder, moved, tmp_path / "index", Silent()).encoded == 0
