"""Every annotation layout comes down to the same images, captions and splits; broken files name their place."""

from __future__ import annotations

import csv
import io
import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmpagl_core.datasets.annotations import AnnotatedImage, Annotations
from cmpagl_core.datasets.prepared import captions_sha256
from cmpagl_core.datasets.sources import load_annotations
from cmpagl_core.datasets.sources_text import class_caption, read_class_folders
from cmpagl_core.errors import DataError

NAMES = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=6)
LINE = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029\x85"), max_size=20)
SETS = st.dictionaries(
    NAMES, st.tuples(st.sampled_from(["train", "val", "test"]), st.lists(LINE, min_size=2, max_size=2)), min_size=1
)
Images = dict[str, tuple[str, list[str]]]  # stem: split and captions


def karpathy(images: Images) -> dict[str, Any]:
    return {
        "dataset": "toy",
        "images": [
            {"filename": f"{stem}.tif", "split": split, "sentences": [{"raw": text} for text in texts]}
            for stem, (split, texts) in images.items()
        ],
    }


def write_karpathy(folder: Path, images: Images) -> Path:
    path = folder / "dataset_toy.json"
    path.write_text(json.dumps(karpathy(images)), encoding="utf-8")
    return path


def write_precomp(folder: Path, images: Images, names_each: int = 1) -> Path:
    root = folder / "toy_precomp"
    root.mkdir(parents=True, exist_ok=True)
    for old in root.iterdir():
        old.unlink()
    for part in {split for split, _ in images.values()}:
        chosen = {stem: texts for stem, (split, texts) in images.items() if split == part}
        captions = "".join(f"{text}\n" for texts in chosen.values() for text in texts)
        names = "".join(f"{stem}.jpg\n" * names_each for stem in chosen)
        (root / f"{part}_caps.txt").write_text(captions, encoding="utf-8")
        (root / f"{part}_filename.txt").write_text(names, encoding="utf-8")
    return root


def write_lists(folder: Path, images: Images, one_by_one: bool) -> Path:
    root = folder / "finetune"
    root.mkdir(parents=True, exist_ok=True)
    for old in root.iterdir():
        old.unlink()
    for part in {split for split, _ in images.values()}:
        chosen = {stem: texts for stem, (split, texts) in images.items() if split == part}
        items: list[dict[str, Any]] = [{"image": f"toy/{stem}.jpg", "caption": texts} for stem, texts in chosen.items()]
        if one_by_one:
            items = [{"image": item["image"], "caption": text} for item in items for text in item["caption"]]
        (root / f"toy_{part}.json").write_text(json.dumps(items), encoding="utf-8")
    return root


def write_table(folder: Path, images: Images, suffix: str) -> Path:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter="\t" if suffix == ".tsv" else ",")
    writer.writerow(("file", "caption", "split"))
    writer.writerows((f"{s}.png", text, split) for s, (split, texts) in images.items() for text in texts)
    path = folder / f"captions{suffix}"
    path.write_text(stream.getvalue(), encoding="utf-8", newline="")
    return path


def meaning(annotations: Annotations) -> dict[str, tuple[str, list[str]]]:
    return {image.stem: (image.split, list(image.captions)) for image in annotations.images}


@given(images=SETS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_all_layouts_of_one_set_mean_the_same(tmp_path: Path, images: Images) -> None:
    paths = [
        write_karpathy(tmp_path, images),
        write_precomp(tmp_path / "once", images),
        write_precomp(tmp_path / "each", images, names_each=2),
        write_lists(tmp_path / "lists", images, one_by_one=False),
        write_lists(tmp_path / "ones", images, one_by_one=True),
        write_table(tmp_path, images, ".csv"),
        write_table(tmp_path, images, ".tsv"),
    ]
    read = [meaning(load_annotations(path)) for path in paths]
    assert all(one == images for one in read)


def test_two_layouts_of_one_set_have_the_same_test_hash(tmp_path: Path) -> None:
    images: Images = {"a": ("test", ["one  plane ", "two planes"]), "b": ("test", ["a bridge", "it"])}

    def digest(annotations: Annotations) -> str:
        pairs = [(image.stem, text) for image in annotations.images for text in image.captions]
        return captions_sha256([stem for stem, _ in pairs], [text for _, text in pairs])

    assert digest(load_annotations(write_karpathy(tmp_path, images))) == digest(
        load_annotations(write_precomp(tmp_path, images))
    )


def test_tokens_serve_where_there_is_no_raw_sentence(tmp_path: Path) -> None:
    content = karpathy({"a": ("train", ["x", "y"])})
    content["images"][0]["sentences"] = [{"tokens": ["two", "planes"]}]
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert load_annotations(tmp_path / "a.json").images[0].captions == ("two planes",)


@pytest.mark.parametrize(
    ("word", "split"), [("restval", "train"), ("validation", "val"), ("dev", "val"), ("TEST", "test")]
)
def test_other_words_for_the_splits_are_known(tmp_path: Path, word: str, split: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(karpathy({"a": (word, ["x", "y"])})))
    assert load_annotations(tmp_path / "a.json").images[0].split == split


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([{"sentences": []}], r"images\[0\]: filename is missing"),
        ([{"filename": 5, "sentences": []}], r"images\[0\]: filename is not a text but 5"),
        ([{"filename": float("nan"), "sentences": []}], r"filename is not a text but nan"),
        ([{"filename": "a.jpg"}], r"images\[0\]: 'a\.jpg' has no list of sentences"),
        ([{"filename": "a.jpg", "sentences": [{"raw": None}]}], r"images\[0\]\.sentences\[0\]: a caption is missing"),
        ([{"filename": "a.jpg", "sentences": [["x"]]}], r"a caption is not a text"),
        ([{"filename": "a.jpg", "sentences": [], "split": "foo"}], r"split 'foo' is not train, val or test"),
        (["a.jpg"], r"images\[0\] is not an object"),
    ],
)
def test_broken_karpathy_entries_are_named(tmp_path: Path, images: list[Any], sentence: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"images": images}))
    with pytest.raises(DataError, match=sentence):
        load_annotations(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", r"a\.json:1: not valid JSON"),
        ('{"images": [\n{]}', r"a\.json:2: not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("9" * 5000, "not valid JSON"),
        ("[]", "has no known layout"),
        ("{}", "has no known layout"),
        ("[1, 2]", "has no known layout"),
        ('[{"image": "a.jpg"}]', r"\[0\]: 'a\.jpg': a caption is missing"),
        ('[{"image": "a.jpg", "caption": "x"}, 5]', r"\[1\] is not an object"),
        ("\udcff", "is not UTF-8"),
    ],
)
def test_hostile_json_is_refused_with_its_place(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "a.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=sentence):
        load_annotations(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", r"a\.csv:1: the columns are none"),
        ("name;what\n", r"the columns are name, what; name them file, caption"),
        ("file,caption\n", "has a header but no rows"),
        (
            "file,caption\na.jpg,a plane, two cars\n",
            r"a\.csv:2: 3 cells where the header has 2; put captions with a comma",
        ),
        ("file,caption\na.jpg\n", r"a\.csv:2: 1 cells"),
        ('file,caption\na.jpg,"a plane\n', r"a\.csv:2: a quote in this row is never closed"),
        ("file,caption,split\na.jpg,a,weekend\n", r"a\.csv:2: split 'weekend' is not train"),
        ("file,caption\na.jpg,\udcff\n", "is not UTF-8 text"),
    ],
)
def test_hostile_tables_are_refused_with_their_line(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "a.csv").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=sentence):
        load_annotations(tmp_path / "a.csv")


def test_tables_of_spreadsheets_are_read(tmp_path: Path) -> None:
    """A byte order mark, semicolons, Windows line ends, capitals, several caption columns."""
    text = '\ufeffFile;Caption_1;Caption_2;Scene\r\na.jpg;"one; two";;Port\r\n\r\nb.jpg;three;four;Sea\r\n'
    (tmp_path / "a.csv").write_bytes(text.encode())
    assert [(i.name, i.captions, i.scene) for i in load_annotations(tmp_path / "a.csv").images] == [
        ("a.jpg", ("one; two",), "Port"),
        ("b.jpg", ("three", "four"), "Sea"),
    ]


def test_a_caption_of_ten_thousand_long_words_and_emoji_is_read(tmp_path: Path) -> None:
    caption = "supercalifragilistic 🛩 " * 10_000
    path = write_table(tmp_path, {"a": ("train", [caption])}, ".csv")
    limit = csv.field_size_limit()
    assert load_annotations(path).images[0].captions == (caption,)
    assert csv.field_size_limit() == limit


def test_line_lists_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train_caps.txt").write_text("a\nb\nc\n")
    (tmp_path / "train_filename.txt").write_text("1.jpg\n2.jpg\n")
    with pytest.raises(DataError, match=r"train_caps\.txt has 3 lines and .*train_filename\.txt 2"):
        load_annotations(tmp_path)


def test_half_of_a_line_list_is_missed(tmp_path: Path) -> None:
    write_precomp(tmp_path, {"a": ("train", ["x", "y"]), "b": ("test", ["x", "y"])})
    (tmp_path / "toy_precomp/test_caps.txt").unlink()
    with pytest.raises(DataError, match=r"test_caps\.txt cannot be read"):
        load_annotations(tmp_path / "toy_precomp")


def test_a_line_list_may_be_named_by_one_of_its_files(tmp_path: Path) -> None:
    root = write_precomp(tmp_path, {"a": ("train", ["x", "y"])})
    assert load_annotations(root / "train_caps.txt").layout == "amfmn"


def test_of_several_sets_in_a_folder_the_named_one_is_read(tmp_path: Path) -> None:
    for name in ("ucm", "rsicd"):
        (tmp_path / f"dataset_{name.upper()}.json").write_text(json.dumps(karpathy({name: ("test", ["x", "y"])})))
    assert load_annotations(tmp_path, "rsicd").images[0].stem == "rsicd"
    with pytest.raises(DataError, match="both contain annotations; choose one with --annotations FILE"):
        load_annotations(tmp_path, "sydney")


def test_annotations_are_found_in_folders_below(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    write_karpathy(tmp_path / "a/b", {"a": ("test", ["x", "y"])})
    assert load_annotations(tmp_path).layout == "karpathy"


def test_tables_of_other_things_are_no_annotations(tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("filename,class\na.jpg,port\n")
    with pytest.raises(DataError, match="there are no annotations in"):
        load_annotations(tmp_path)


def test_lists_whose_names_tell_no_split_are_ambiguous(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.json").write_text('[{"image": "a.jpg", "caption": "x"}]')
    with pytest.raises(DataError, match="their names do not give their splits"):
        load_annotations(tmp_path)


def test_missing_annotations_say_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist; give a Karpathy JSON file .* or a CSV"):
        load_annotations(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.jpg", "/etc/passwd.jpg", "..\\..\\passwd.jpg", "a/./../passwd.jpg", "C:\\x\\passwd.jpg"]
)
def test_a_name_never_leads_upwards(name: str) -> None:
    image = AnnotatedImage(name, ("x",), "train", "")
    assert ".." not in image.parts
    assert "" not in image.parts
    assert image.stem == "passwd"


@pytest.mark.parametrize("name", ["", "/", "..", "../..", "."])
def test_a_name_of_nothing_has_no_stem(name: str) -> None:
    assert AnnotatedImage(name, (), "", "").stem == ""


@given(content=st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["images", "image", "filename", "sentences", "raw", "caption", "split"]), inner),
    max_leaves=20,
))  # fmt: skip
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_read_or_refused_with_a_sentence(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    try:
        annotations = load_annotations(path)
    except DataError:
        return
    assert all(isinstance(text, str) for image in annotations.images for text in image.captions)


@given(rows=st.text(st.sampled_from('ab,;"\n\r\t\0 🛩'), max_size=60), suffix=st.sampled_from([".csv", ".tsv"]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_table_is_read_or_refused_with_its_line(tmp_path: Path, rows: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(f"file,caption\n{rows}".replace(",", "\t" if suffix == ".tsv" else ",").encode())
    try:
        annotations = load_annotations(path)
    except DataError as error:
        assert f"a{suffix}" in error.message  # noqa: PT017  # reading it is as good
        return
    assert annotations.images


@pytest.mark.parametrize(
    ("name", "words"),
    [("DenseResidential", "dense residential"), ("storage_tanks", "storage tanks"), ("port", "port"), ("__", "__")],
)
def test_a_class_name_makes_the_caption(name: str, words: str) -> None:
    assert class_caption(name) == f"an aerial image of {words}"


def test_class_folders_may_stand_below_splits(tmp_path: Path) -> None:
    paths = [tmp_path / "train/port/1.jpg", tmp_path / "test/sea/2.jpg", tmp_path / "forest/3.jpg"]
    read = read_class_folders(tmp_path, paths)
    assert [(image.split, image.scene) for image in read.images] == [
        ("train", "port"),
        ("test", "sea"),
        ("", "forest"),
    ]


@pytest.mark.parametrize("place", ["1.jpg", "train/1.jpg"])
def test_images_without_class_or_caption_are_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(DataError, match=r"1\.jpg has neither a caption nor a class; add .*captions\.csv"):
        read_class_folders(tmp_path, [tmp_path / place])
