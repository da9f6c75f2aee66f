"""`prepare` on the real images and captions of the four public sets."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from cmpagl_core.datasets.annotations import Annotations
from cmpagl_core.datasets.prepare import PrepareResult, prepare
from cmpagl_core.datasets.prepared import captions_sha256, open_prepared
from cmpagl_core.datasets.published import PUBLISHED, ucm_number
from cmpagl_core.datasets.request import PrepareRequest, SourceName
from cmpagl_core.datasets.sources import load_annotations
from cmpagl_core.errors import DataError
from cmpagl_core.progress import Silent
from cmpagl_core.workspace import Workspace

pytestmark = pytest.mark.real


def prepare_real(
    source: SourceName, data: Path, workspace: Path, images: str = "", skip_missing: bool = False
) -> PrepareResult:
    request = PrepareRequest(
        source,
        images=data / (images or source) / "images",
        annotations=data / "annotations" / f"dataset_{source}.json",
        skip_missing=skip_missing,
    )
    return prepare(request, Workspace(workspace), Silent())


def split_hash(annotations: Annotations, split: str) -> str:
    pairs = [(image.stem, text) for image in annotations.images if image.split == split for text in image.captions]
    return captions_sha256([stem for stem, _ in pairs], [text for _, text in pairs])


@pytest.mark.parametrize(
    ("name", "unique_test_captions"), [("rsicd", 3331), ("rsitmd", 2119), ("ucm", 377), ("sydney", 136)]
)
def test_the_public_files_have_the_published_counts(real_data: Path, name: str, unique_test_captions: int) -> None:
    annotations = load_annotations(real_data / "annotations" / f"dataset_{name}.json")
    assert PUBLISHED[name].fits(Counter(image.split for image in annotations.images))
    texts = {text for image in annotations.images if image.split == "test" for text in image.captions}
    assert len(texts) == unique_test_captions


@pytest.mark.parametrize("name", ["rsicd", "rsitmd"])
def test_both_public_layouts_have_the_same_test_split(real_data: Path, name: str) -> None:
    folder = real_data / "annotations"
    karpathy = load_annotations(folder / f"dataset_{name}.json")
    amfmn = load_annotations(folder / f"{name}_precomp")
    assert (karpathy.layout, amfmn.layout) == ("karpathy", "amfmn")
    assert split_hash(karpathy, "test") == split_hash(amfmn, "test")
    assert PUBLISHED[name].fits(Counter(image.split for image in amfmn.images))


def test_a_folder_of_all_annotations_gives_the_set_that_is_asked_for(real_data: Path) -> None:
    for name, published in PUBLISHED.items():
        annotations = load_annotations(real_data / "annotations", name)
        assert annotations.files[0].name == f"dataset_{name}.json"
        assert len(annotations.images) == published.total


def test_ucm_is_prepared_whole_with_its_scenes(real_data: Path, tmp_path: Path) -> None:
    result = prepare_real("ucm", real_data, tmp_path)
    assert result.manifest.complete
    assert {split: count.images for split, count in result.manifest.counts.items()} == {
        "train": 1680,
        "val": 210,
        "test": 210,
    }
    everything = open_prepared(result.root).split("all")
    with (real_data / "ucm/classes.csv").open() as stream:
        rows = {Path(row["image"]).stem: row for row in csv.DictReader(stream)}
    assert dict(zip(everything.image_ids, everything.scenes, strict=True)) == {
        stem: row["class"] for stem, row in rows.items()
    }
    assert all(ucm_number(row["source"]) == stem for stem, row in rows.items())
    sizes = open_prepared(result.root).images.set_index("image_id")
    assert all((int(row["width"]), int(row["height"])) == (sizes.loc[stem, "width"], sizes.loc[stem, "height"])
               for stem, row in rows.items())  # fmt: skip
    hashes = dict(zip(everything.image_ids, everything.image_sha256, strict=True))
    assert hashes["102"] == hashes["103"]
    assert prepare_real("ucm", real_data, tmp_path).up_to_date


def test_nine_sydney_images_fail_with_a_list(real_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sydney has problems \(missing: 604\)"):
        prepare_real("sydney", real_data, tmp_path)
    with (tmp_path / "data/sydney/problems.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 604


def test_ucm_annotations_do_not_pass_for_other_images(real_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="they seem to belong to different data sets"):
        prepare_real("ucm", real_data, tmp_path, images="rsicd", skip_missing=True)


@pytest.mark.slow
def test_part_of_rsicd_fails_strictly(real_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rsicd has problems \(missing: 1,948\)"):
        prepare_real("rsicd", real_data, tmp_path)


def test_part_of_rsicd_says_what_it_left_out(real_data: Path, tmp_path: Path) -> None:
    manifest = prepare_real("rsicd", real_data, tmp_path, skip_missing=True).manifest
    assert {split: count.images for split, count in manifest.counts.items()} == {"train": 7946, "val": 1027, "test": 0}
    assert len(manifest.dropped) == 1948
    assert not manifest.complete
    scenes = Counter(open_prepared(tmp_path / "data/rsicd").split("all").scenes)
    assert len(scenes) == 30
    assert "" not in scenes
