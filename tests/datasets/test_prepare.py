"""`prepare` on small sources: what is right is prepared once, what is wrong told whole, what is left out recorded."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmpagl_core.datasets.prepare import PrepareResult, prepare
from cmpagl_core.datasets.prepared import PreparedDataset, open_prepared
from cmpagl_core.datasets.request import PrepareRequest, parse_fractions
from cmpagl_core.errors import CmpaglError, DataError, MismatchError, UsageError
from cmpagl_core.progress import Silent
from cmpagl_core.workspace import Workspace


def draw(path: Path, number: int, size: int = 6) -> Path:
    """A small image that no other number has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_captions(folder: Path, rows: Sequence[tuple[str, ...]], heads: tuple[str, ...] = ("file", "caption")) -> Path:
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([heads, *rows])
    return folder


@dataclass
class Place:
    """A workspace, and a source of the user's beside it."""

    root: Path

    def prepare(self, source: Any = "folder", **options: Any) -> PrepareResult:
        if source == "folder":
            options.setdefault("folder", self.folder)
        return prepare(PrepareRequest(source, **options), Workspace(self.root), Silent())

    def opened(self, source: Any = "folder", **options: Any) -> PreparedDataset:
        return open_prepared(self.prepare(source, **options).root)

    @property
    def folder(self) -> Path:
        return self.root / "mine"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Ten images with two captions each."""
    there = Place(tmp_path)
    for number in range(10):
        draw(there.folder / f"p{number}.png", number)
    write_captions(there.folder, [(f"p{n}.png", f"{word} {n}") for n in range(10) for word in ("plane", "bridge")])
    return there


@pytest.fixture(scope="session")
def sydney_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with the counts of Sydney-Captions: 613 images as .png, annotations that say .tif."""
    folder = tmp_path_factory.mktemp("sydney")
    images = []
    for number in range(1, 614):
        draw(folder / f"images/{number}.png", number, size=2)
        split = "train" if number <= 497 else "val" if number <= 555 else "test"
        sentences = [{"raw": f"caption {word} of {number} ."} for word in "abcde"]
        images.append({"filename": f"{number}.tif", "imgid": number - 1, "split": split, "sentences": sentences})
    write_json(folder / "dataset.json", {"images": images, "dataset": "Sydney"})
    return folder


def sydney(place: Place, source: Path, **options: Any) -> PrepareResult:
    return place.prepare("sydney", images=source / "images", annotations=source / "dataset.json", **options)


def changed(source: Path, to: Path, change: Callable[[list[dict[str, Any]]], Any]) -> Path:
    """A copy of the annotations with `change` made to the list of images; images stay where they are."""
    content = json.loads((source / "dataset.json").read_text())
    change(content["images"])
    return write_json(to / "dataset.json", content)


# What is right


def test_a_public_set_keeps_its_splits_stems_and_sizes(place: Place, sydney_source: Path) -> None:
    result = sydney(place, sydney_source)
    prepared = open_prepared(result.root)
    counts = {split: len(prepared.split(split)) for split in ("train", "val", "test")}
    assert counts == {"train": 497, "val": 58, "test": 58}
    assert set(prepared.images["width"]) == {2}
    assert prepared.split("test").image_ids[0] == "556"
    assert result.manifest.complete
    assert result.manifest.protocol == "splits of Sydney-Captions as published"


def test_captions_stay_as_they_were_written(place: Place) -> None:
    captions = ['a "quoted", plane', "two\nlines", "🛩 émoji ", "x" * 70_000, " ".join(["word"] * 10_000)]
    write_captions(place.folder, [("p0.png", caption) for caption in captions])
    assert list(place.opened(fractions=(1.0, 0.0, 0.0)).split("train").captions) == captions


def test_a_folder_is_dealt_by_seed_and_image(place: Place) -> None:
    shutil.copy(place.folder / "p0.png", place.folder / "copy.png")
    with (place.folder / "captions.csv").open("a") as stream:
        stream.write("copy.png,the same plane\n")
    first = place.opened()
    assert Counter(first.images["split"]) == {"train": 9, "val": 1, "test": 1}
    split_of = dict(zip(first.images["image_id"], first.images["split"], strict=True))
    assert split_of["p0"] == split_of["copy"]
    other = place.opened(seed=5, name="other")
    assert dict(zip(other.images["image_id"], other.images["split"], strict=True)) != split_of


def test_one_folder_per_class_makes_captions_and_scenes(tmp_path: Path) -> None:
    there = Place(tmp_path)
    for number in range(6):
        draw(there.folder / ("StorageTanks" if number % 2 else "port") / f"{number // 2}.png", number)
    split = there.opened().split("all")
    assert set(split.image_ids) == {f"{name}/{number}" for name in ("StorageTanks", "port") for number in range(3)}
    assert set(split.captions) == {"an aerial image of storage tanks", "an aerial image of port"}
    assert set(split.scenes) == {"StorageTanks", "port"}


def test_given_splits_are_kept_and_val_is_cut_where_there_is_none(place: Place) -> None:
    rows = [(f"p{n}.png", f"plane {n}", "test" if n >= 8 else "train") for n in range(10)]
    write_captions(place.folder, rows, ("file", "caption", "split"))
    prepared = place.opened(seed=3)
    assert set(prepared.split("test").image_ids) == {"p8", "p9"}
    assert len(prepared.split("val")) == 1
    assert prepared.manifest.protocol.endswith("cut by image with seed 3 (ours)")


def test_missing_images_do_not_move_the_others_between_train_and_val(place: Place) -> None:
    rows = [(f"p{n}.png", f"plane {n}", "test" if n >= 8 else "train") for n in range(10)]
    write_captions(place.folder, rows, ("file", "caption", "split"))
    whole = place.opened()
    (place.folder / "p1.png").unlink()
    partial = place.opened(skip_missing=True, name="partial")
    before = dict(zip(whole.images["image_id"], whole.images["split"], strict=True))
    after = dict(zip(partial.images["image_id"], partial.images["split"], strict=True))
    assert after == {image: split for image, split in before.items() if image != "p1"}


@pytest.mark.parametrize(
    ("mode", "size"), [("I;16", (6, 6)), ("L", (6, 6)), ("RGBA", (6, 6)), ("CMYK", (6, 6)), ("RGB", (1, 1))]
)
def test_unusual_images_are_accepted(place: Place, mode: str, size: tuple[int, int]) -> None:
    image = Image.new("I;16", size, 4000) if mode == "I;16" else Image.new("RGB", size, (9, 8, 7)).convert(mode)
    (place.folder / "p0.png").unlink()
    image.save(place.folder / "p0.tif")
    images = place.opened().images.set_index("image_id")
    assert (images.loc["p0", "width"], images.loc["p0", "height"]) == size


def test_scenes_drawn_by_us_are_prepared_where_they_are(tmp_path: Path) -> None:
    result = Place(tmp_path).prepare("synthetic", count=12, image_size_px=64)
    split = open_prepared(result.root).split("all")
    assert len(split) == 12
    assert len(split.captions) == 60
    assert all(path.is_file() and path.is_relative_to(result.root / "source") for path in split.paths)
    assert (result.root / "source/truth" / f"{split.image_ids[0]}.json").is_file()
    assert Place(tmp_path).prepare("synthetic", count=12, image_size_px=64).up_to_date
    assert not Place(tmp_path).prepare("synthetic", count=11, image_size_px=64).up_to_date


# Where things are


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz", "zip beside"])
def test_a_public_set_is_found_under_raw(place: Place, sydney_source: Path, kind: str) -> None:
    raw = place.root / "data/raw/sydney"
    if kind == "folder":
        shutil.copytree(sydney_source, raw / "Sydney_captions")
    elif kind.startswith("zip"):
        raw.mkdir(parents=True)
        target = raw / "all.zip" if kind == "zip" else raw.parent / "sydney.zip"
        with zipfile.ZipFile(target, "w") as archive:
            for path in sydney_source.rglob("*.*"):
                archive.write(path, path.relative_to(sydney_source))
    else:
        raw.mkdir(parents=True)
        with tarfile.open(raw / "all.tar.gz", "w:gz") as archive:
            archive.add(sydney_source, "Sydney")
    assert place.prepare("sydney").manifest.counts["test"].images == 58
    assert place.prepare("sydney").up_to_date


def test_an_archive_may_be_named(place: Place, sydney_source: Path) -> None:
    with zipfile.ZipFile(place.root / "images.zip", "w") as archive:
        for path in (sydney_source / "images").iterdir():
            archive.write(path, f"imgs/{path.name}")
    result = place.prepare("sydney", images=place.root / "images.zip", annotations=sydney_source / "dataset.json")
    assert (result.root / "source/imgs/1.png").is_file()
    assert open_prepared(result.root).split("train").paths[0].is_file()


def test_nothing_under_raw_says_what_to_put_there_and_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the images of RSICD are missing; put into .*raw/rsicd the images") as told:
        Place(tmp_path).prepare("rsicd")
    assert "dataset_rsicd.json from https://github.com/201528014227051/RSICD_optimal" in str(told.value)


def test_images_without_captions_say_what_is_missing(place: Place, sydney_source: Path) -> None:
    with pytest.raises(DataError, match="the captions of Sydney-Captions are missing; put into"):
        place.prepare("sydney", images=sydney_source / "images")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("nowhere", "nowhere does not exist"), ("empty", "there is no image in"), ("notes.txt", "is neither a folder")],
)
def test_a_folder_that_is_none_is_refused(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=sentence):
        Place(tmp_path).prepare(folder=tmp_path / name)


def test_paths_in_the_workspace_move_with_it(tmp_path: Path, sydney_source: Path) -> None:
    there = Place(tmp_path / "old")
    shutil.copytree(sydney_source, there.root / "data/raw/sydney")
    there.prepare("sydney")
    there.root.rename(tmp_path / "new")
    split = open_prepared(tmp_path / "new/data/sydney").split("test")
    assert all(path.is_file() for path in split.paths)


def test_copied_images_outlive_their_source(place: Place) -> None:
    prepared = place.opened(copy=True)
    shutil.rmtree(place.folder)
    assert all(path.is_file() for path in prepared.split("all").paths)


# Once


def test_a_second_run_is_up_to_date_and_changes_nothing(place: Place) -> None:
    first = place.prepare()
    before = {path.name: path.read_bytes() for path in first.root.iterdir()}
    second = place.prepare()
    assert not first.up_to_date
    assert second.up_to_date
    assert second.manifest == first.manifest
    assert {path.name: path.read_bytes() for path in first.root.iterdir()} == before


def _new_image(place: Place) -> None:
    draw(place.folder / "p0.png", 99)
    os.utime(place.folder / "p0.png", ns=(1, 1))


def _new_caption(place: Place) -> None:
    path = place.folder / "captions.csv"
    path.write_text(path.read_text().replace("plane 0", "plain 0"))


def _edited_table(place: Place) -> None:
    path = place.root / "data/folder/captions.csv"
    path.write_text(path.read_text().replace("plane 0", "plain 0"))


def _lost_table(place: Place) -> None:
    (place.root / "data/folder/images.csv").unlink()


def _broken_manifest(place: Place) -> None:
    (place.root / "data/folder/manifest.json").write_text("{")


@pytest.mark.parametrize("change", [_new_image, _new_caption, _edited_table, _lost_table, _broken_manifest])
def test_any_change_is_noticed_and_mended(place: Place, change: Callable[[Place], None]) -> None:
    place.prepare()
    change(place)
    assert not place.prepare().up_to_date
    assert place.prepare().up_to_date


def test_a_swapped_copy_is_refused_and_mended(place: Place) -> None:
    result = place.prepare(copy=True)
    draw(result.root / "images" / "p0.png", 99)
    with pytest.raises(MismatchError, match=r"p0\.png has changed since folder was prepared"):
        open_prepared(result.root).split("all")
    assert not place.prepare(copy=True).up_to_date
    assert len(open_prepared(result.root).split("all")) == 10


def pack(place: Place, first_number: int) -> Path:
    """The ten images of a place as an archive; other numbers are other images of the same names."""
    archive = place.root / "images.zip"
    for number in range(10):
        draw(place.folder / f"p{number}.png", first_number + number)
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted(place.folder.iterdir()):
            packed.write(path, path.name)
    return archive


@pytest.mark.parametrize(
    ("killed_at", "kind", "said"),
    [
        ("cmpagl_core.datasets.building.write_prepared", MismatchError, "has changed since folder was prepared"),
        ("cmpagl_core.datasets.writing.write_json", DataError, r"images\.csv was changed after it was written"),
    ],
)
def test_a_changed_archive_whose_preparing_was_killed_never_opens_with_other_images(
    place: Place, killed_at: str, kind: type[CmpaglError], said: str
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    root = place.prepare(folder=pack(place, 0)).root
    changed = pack(place, 50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(killed_at, killed)
        with pytest.raises(KeyboardInterrupt):
            place.prepare(folder=changed)
    with pytest.raises(kind, match=said):
        open_prepared(root).split("train")
    assert not place.prepare(folder=changed).up_to_date
    assert len(open_prepared(root).split("all")) == 10


def test_the_data_set_that_was_asked_for_last_is_the_default(place: Place) -> None:
    first = place.prepare(name="first")
    second = place.prepare(name="second")
    assert Workspace(place.root).find("data") == second.root
    assert place.prepare(name="first").up_to_date
    assert Workspace(place.root).find("data") == first.root


def test_other_options_prepare_again(place: Place) -> None:
    place.prepare()
    assert not place.prepare(seed=1).up_to_date
    assert not place.prepare(fractions=(0.5, 0.25, 0.25)).up_to_date


def test_lost_copies_are_noticed(place: Place) -> None:
    root = place.prepare(copy=True).root
    (root / "images/p3.png").unlink()
    assert not place.prepare(copy=True).up_to_date
    assert (root / "images/p3.png").is_file()


# What is wrong


def _missing(there: Place) -> None:
    (there.folder / "p0.png").unlink()


def _truncated(there: Place) -> None:
    path = there.folder / "p0.png"
    path.write_bytes(path.read_bytes()[:60])


def _empty_file(there: Place) -> None:
    (there.folder / "p0.png").write_bytes(b"")


def _blank(there: Place) -> None:
    with (there.folder / "captions.csv").open("a") as stream:
        stream.write("p0.png,  \n")


def _ambiguous(there: Place) -> None:
    write_captions(there.folder, [("p0.tif", "plane"), ("p1.png", "bridge")])
    draw(there.folder / "p0.bmp", 50)


def _two_splits(there: Place) -> None:
    rows = [("p0.png", "a", "train"), ("p0.png", "b", "test"), ("p1.png", "c", "val")]
    write_captions(there.folder, rows, ("file", "caption", "split"))


def _no_name(there: Place) -> None:
    with (there.folder / "captions.csv").open("a") as stream:
        stream.write("..,a plane\n")


def _nul(there: Place) -> None:
    with (there.folder / "captions.csv").open("a") as stream:
        stream.write("p0.png,a\0plane\n")


@pytest.mark.parametrize(
    ("spoil", "kind", "line"),
    [
        (_missing, "missing", r"p0\.png: the image does not exist"),
        (_truncated, "unreadable image", r"p0\.png: .*p0\.png is a broken image"),
        (_empty_file, "unreadable image", r"p0\.png is not an image of a known format"),
        (_blank, "bad caption", r"p0\.png: has a blank caption"),
        (_ambiguous, "ambiguous", r"p0\.tif: could be .*p0\.bmp or .*p0\.png"),
        (_two_splits, "duplicate", r"p0\.png: is in test and in train"),
        (_no_name, "bad name", r"\.\.: its file name is empty or not valid text"),
        (_nul, "bad caption", r"p0\.png: has a caption that is not valid text"),
    ],
)
def test_what_is_wrong_stops_a_strict_run_and_is_recorded_by_a_lenient_one(
    place: Place, spoil: Callable[[Place], None], kind: str, line: str
) -> None:
    spoil(place)
    with pytest.raises(DataError, match=rf"folder has problems \({kind}: 1\); .*--skip-missing[\s\S]*{line}"):
        place.prepare()
    problems = place.root / "data/folder/problems.csv"
    assert problems.read_text().startswith(f"kind,what,why,where\n{kind},")
    assert not (place.root / "data/folder/manifest.json").exists()
    result = place.prepare(skip_missing=True)
    assert len(result.manifest.dropped) == 1
    assert not result.manifest.complete
    assert not problems.exists()
    assert open_prepared(result.root).split("all").captions


def test_the_first_twenty_are_shown_and_all_are_listed(place: Place, sydney_source: Path, tmp_path: Path) -> None:
    for number in range(1, 10):
        draw(tmp_path / f"few/{number}.jpg", number)
    with pytest.raises(DataError, match=r"sydney has problems \(missing: 604\)") as told:
        place.prepare("sydney", images=tmp_path / "few", annotations=sydney_source / "dataset.json")
    lines = str(told.value).splitlines()
    assert len(lines) == 22
    assert lines[1] == "  10.tif: the image does not exist"
    assert lines[-1] == "  and 584 more"
    assert len((place.root / "data/sydney/problems.csv").read_text().splitlines()) == 605


def test_an_image_in_two_splits_is_kept_where_it_cannot_leak(place: Place) -> None:
    _two_splits(place)
    prepared = place.opened(skip_missing=True)
    assert list(prepared.split("test").captions) == ["b"]
    with pytest.raises(DataError, match="the train split of folder has no images"):
        prepared.split("train")


def test_a_failed_run_leaves_the_last_good_data_set(place: Place) -> None:
    good = place.prepare().manifest
    _missing(place)
    with pytest.raises(DataError):
        place.prepare()
    assert open_prepared(place.root / "data/folder").manifest == good


def test_counts_other_than_the_published_stop_a_strict_run(place: Place, sydney_source: Path, tmp_path: Path) -> None:
    fewer = changed(sydney_source, tmp_path, lambda images: images.pop())
    with pytest.raises(DataError, match=r"published with 497 train / 58 val / 58 test images, but there are .*57 test"):
        place.prepare("sydney", images=sydney_source / "images", annotations=fewer)
    lenient = place.prepare("sydney", images=sydney_source / "images", annotations=fewer, skip_missing=True)
    assert lenient.manifest.dropped[0].what == "images"
    assert not lenient.manifest.complete


def test_a_lost_caption_stops_a_strict_run(place: Place, sydney_source: Path, tmp_path: Path) -> None:
    fewer = changed(sydney_source, tmp_path, lambda images: images[0]["sentences"].pop())
    with pytest.raises(
        DataError, match="captions: Sydney-Captions was published with 5 per image, but there are 3,064"
    ):
        place.prepare("sydney", images=sydney_source / "images", annotations=fewer)


def test_annotations_of_another_public_set_are_recognised(place: Place, sydney_source: Path) -> None:
    with pytest.raises(DataError, match="so it is Sydney-Captions, not UCM-Captions; run `cmpagl prepare sydney`"):
        place.prepare(
            "ucm", images=sydney_source / "images", annotations=sydney_source / "dataset.json", skip_missing=True
        )


@pytest.mark.parametrize("skip_missing", [False, True])
def test_images_of_another_set_are_told_in_one_sentence(place: Place, sydney_source: Path, skip_missing: bool) -> None:
    with pytest.raises(DataError, match=r"none of the 613 images .* \(1\.tif, .*\) is in .*mine \(p0\.png") as told:
        place.prepare(
            "sydney", images=place.folder, annotations=sydney_source / "dataset.json", skip_missing=skip_missing
        )
    assert "\n" not in str(told.value)


def test_names_that_lead_outside_never_reach_a_file(place: Place) -> None:
    outside = draw(place.root / "secret.png", 77)
    write_captions(place.folder, [("p0.png", "a plane"), ("../secret.png", "stolen"), (str(outside), "stolen too")])
    with pytest.raises(DataError, match=r"secret\.png: the image does not exist"):
        place.prepare()


def test_surrogates_and_control_characters_reach_no_file(place: Place, tmp_path: Path) -> None:
    entries = [
        {"image": "p0.png", "caption": ["fine", "half \ud83d a plane"]},
        {"image": "p1\ud800.png", "caption": "x"},
        {"image": "p2\u0000.png", "caption": "y"},
    ]
    result = place.prepare(annotations=write_json(tmp_path / "a.json", entries), skip_missing=True)
    assert list(open_prepared(result.root).split("all").captions) == ["fine"]
    assert {dropped.what for dropped in result.manifest.dropped} == {"p0.png", "p1\\ud800.png", "p2\0.png"}


def test_some_images_without_a_split_are_refused(place: Place, tmp_path: Path) -> None:
    entries = [{"image": "p0.png", "caption": "x", "split": "train"}, {"image": "p1.png", "caption": "y"}]
    with pytest.raises(DataError, match=r"\[1\]: 'p1\.png' has no split, but others do; add its split"):
        place.prepare(annotations=write_json(tmp_path / "a.json", entries))


def test_known_blank_captions_are_dropped_with_a_word(place: Place, tmp_path: Path) -> None:
    blank = ("mountain_2378", "railwaystation_3254", "storagetanks_4367", "viaduct_4635")
    names = [*blank, *(f"port_{number}" for number in range(4287 + 452))]
    entries = [
        {
            "filename": f"{name}.tif",
            "split": "train" if row < 4291 else "test",
            "sentences": [{"raw": "" if name in blank else f"port {row}"}] * 5,
        }
        for row, name in enumerate(names)
    ]
    image = draw(tmp_path / "one.png", 0)
    (tmp_path / "all").mkdir()
    for name in names:
        os.link(image, tmp_path / "all" / f"{name}.png")
    annotations = write_json(tmp_path / "a.json", {"images": entries})
    manifest = place.prepare("rsitmd", images=tmp_path / "all", annotations=annotations).manifest
    assert manifest.complete
    assert {dropped.what for dropped in manifest.dropped} == {f"{name}.tif" for name in blank}
    assert manifest.dropped[0].why == "its 5 captions are blank in the published RSITMD"
    assert manifest.counts["train"].images + manifest.counts["val"].images == 4287
    assert manifest.counts["val"].images == 429
    assert manifest.counts["test"].images == 452


def test_a_full_disk_leaves_the_last_good_data_set(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    good = place.prepare().manifest

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CmpaglError, match="No space left on device"):
        place.prepare(seed=8)
    monkeypatch.undo()
    assert open_prepared(place.root / "data/folder").manifest == good
    assert not list((place.root / "data/folder").glob("*.partial"))


# What makes no sense


@pytest.mark.parametrize(
    ("source", "options", "sentence"),
    [
        ("rsicd", {"folder": Path("x")}, "`prepare rsicd` does not take DIR"),
        ("rsicd", {"count": 5, "fractions": (0.8, 0.1, 0.1)}, "not take --split and --count"),
        ("synthetic", {"images": Path("x"), "skip_missing": True}, "not take --images and --skip-missing"),
        ("folder", {"images": Path("x")}, "not take --images"),
        ("folder", {"folder": None}, "write `cmpagl prepare folder DIR`"),
    ],
)
def test_options_without_a_use_are_refused(place: Place, source: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        place.prepare(source, **options)


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".", "x" * 200])
def test_a_name_cannot_leave_the_workspace(place: Place, name: str) -> None:
    if name:
        with pytest.raises(UsageError, match="is not a valid name"):
            place.prepare(name=name)
    else:
        assert place.prepare(name=name).root == place.root / "data/folder"


def test_shares_for_captions_that_name_their_splits_are_refused(place: Place) -> None:
    write_captions(place.folder, [("p0.png", "x", "train")], ("file", "caption", "split"))
    with pytest.raises(UsageError, match="the annotations already have splits; leave --split out"):
        place.prepare(fractions=(0.8, 0.1, 0.1))


@pytest.mark.parametrize(("text", "shares"), [("0.7,0.1,0.2", (0.7, 0.1, 0.2)), ("1, 0, 0", (1.0, 0.0, 0.0))])
def test_shares_are_read(text: str, shares: tuple[float, float, float]) -> None:
    assert parse_fractions(text) == shares


@pytest.mark.parametrize("text", ["", "0.8", "a,b,c", "0.8,0.1,0.2", "nan,0,1", "-1,1,1", "inf,0,0"])
def test_shares_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--split"):
        parse_fractions(text)
