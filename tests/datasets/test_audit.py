"""`cmpagl audit`: each defect that was put into a data set is found where it is, and nothing else."""

from __future__ import annotations

import builtins
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from cmpagl_core.datasets.audit import Audit, AuditRequest, audit
from cmpagl_core.datasets.findings import MOST_ITEMS
from cmpagl_core.progress import Silent
from cmpagl_core.synthetic.generate import generate
from cmpagl_core.workspace import Workspace

Cmpagl = Callable[..., Result]
Rows = list[tuple[str, str, str]]  # file, split, caption


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    """Twelve drawn scenes, all different."""
    folder = tmp_path_factory.mktemp("scenes")
    generate(folder, 12, 5, 96, Silent())
    return [Image.open(path).copy() for path in sorted((folder / "images").iterdir())]


@pytest.fixture
def prepare(cmpagl: Cmpagl, tmp_path: Path) -> Callable[..., None]:
    """Prepare images and captions under a name."""

    def prepare_set(name: str, images: dict[str, Image.Image], rows: Rows) -> None:
        folder = tmp_path / f"{name}-images"
        folder.mkdir()
        for file, image in images.items():
            image.save(folder / file, quality=90)
        with (folder / "captions.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("file", "split", "caption"), *rows])
        result = cmpagl("prepare", "folder", folder, "--name", name)
        assert result.exit_code == 0, result.output

    return prepare_set


def plain_rows(files: list[str]) -> Rows:
    """Captions that share nothing; splits in turn."""
    return [(file, ("train", "val", "test")[row % 3], f"a scene like no other {row}") for row, file in enumerate(files)]


def findings_of(tmp_path: Path, *names: str, **options: Any) -> list[tuple[str, str, int, int, bool]]:
    request = AuditRequest(*names, **options)
    found = audit(request, Workspace(tmp_path), Silent()).findings
    return [(one.check, one.where, one.found, one.of, one.leak) for one in found]


def test_nothing_is_found_in_a_data_set_without_defects(
    scenes: list[Image.Image], prepare: Callable[..., None], cmpagl: Cmpagl, tmp_path: Path
) -> None:
    images = {f"{row}.png": image for row, image in enumerate(scenes)}
    prepare("clean", images, plain_rows(list(images)))
    assert findings_of(tmp_path) == []
    result = cmpagl("audit", "clean", "--fail-on", "any")
    assert result.exit_code == 0
    assert "nothing was found in clean" in result.stderr


def test_captions_by_split(tmp_path: Path, cmpagl: Cmpagl) -> None:
    captions = {
        ("train", "a.jpg"): ["", " \t", "Many  trees.", "a river, and a bridge", "A river and a bridge!"],
        ("train", "b.jpg"): ["a river and a bridge", "word " * 63],
        ("test", "c.jpg"): ["A RIVER and a bridge", "word " * 62, "..."],
    }
    content = [{"image": file, "caption": texts, "split": split} for (split, file), texts in captions.items()]
    (tmp_path / "mine.json").write_text(json.dumps(content))
    assert findings_of(tmp_path, str(tmp_path / "mine.json")) == [
        ("blank captions", "train", 2, 7, False),
        ("short captions", "train", 1, 7, False),
        ("long captions", "train", 1, 7, False),
        ("captions repeated for an image", "train", 1, 7, False),
        ("captions shared by images", "train", 3, 7, False),
        ("short captions", "test", 1, 3, False),
        ("captions also in train", "test", 1, 3, False),
    ]
    result = cmpagl("audit", "mine.json", "--min-words", "1", "--max-words", "100", "--format", "json")
    checks = [finding["check"] for finding in json.loads(result.stdout)["findings"]]
    assert not {"short captions", "long captions"} & set(checks)
    assert "captions alone" in result.stderr


def test_twins_inside_and_across_splits(
    scenes: list[Image.Image], prepare: Callable[..., None], cmpagl: Cmpagl, tmp_path: Path
) -> None:
    images = {f"{row}.png": image for row, image in enumerate(scenes)}
    images["10.png"] = scenes[0]  # 10: val; 0: train
    images["9.jpg"] = images.pop("9.png")
    images["11.png"] = scenes[2].transpose(Image.Transpose.ROTATE_90)  # both test
    images["8.jpg"] = scenes[1].transpose(Image.Transpose.ROTATE_90)  # test, recompressed; 1: val
    del images["8.png"]
    files = [f"{row}.jpg" if row in (8, 9) else f"{row}.png" for row in range(12)]
    prepare("twins", images, plain_rows(files))
    assert findings_of(tmp_path) == [
        ("identical images", "val / train", 1, 4, True),
        ("near-duplicate images", "test", 2, 4, False),
        ("near-duplicate images", "test / val", 1, 4, True),
    ]
    assert findings_of(tmp_path, near_bits=None) == [("identical images", "val / train", 1, 4, True)]
    result = cmpagl("audit", "--format", "json", "--fail-on", "leak")
    assert result.exit_code == 4
    assert "twins has 2 leaks, the first: identical images (val / train): 1 of 4" in result.stderr
    document = json.loads(result.stdout)
    assert document["leaks"] == 2
    within, across = (document["findings"][place]["items"][0] for place in (1, 2))
    assert (within["image_id"], within["other"], within["turn"]) == ("2", "11", "rotate 270")
    assert (across["image_id"], across["other"], across["turn"]) == ("8", "1", "rotate 90")
    table = cmpagl("audit", "twins")
    assert table.exit_code == 0
    assert "10 = 0" in table.stdout


def test_another_data_set_leaks_images_and_captions(
    scenes: list[Image.Image], prepare: Callable[..., None], tmp_path: Path
) -> None:
    mine = {f"{row}.png": image for row, image in enumerate(scenes[:6])}
    rows = plain_rows(list(mine))
    prepare("mine", mine, rows)
    theirs = {f"other_{row}.png": image for row, image in enumerate(scenes[6:])}
    theirs["other_0.png"] = scenes[2]  # train there, test here
    theirs["other_1.png"] = scenes[5].transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # val there, test here
    theirs["other_3.png"] = scenes[0]  # train in both: no leak
    theirs["other_4.png"] = theirs["other_5.png"]  # their own matter
    others = [(file, split, text.replace("scene", "place").upper()) for file, split, text in plain_rows(list(theirs))]
    others[0] = (*others[0][:2], rows[2][2].upper() + "!")
    prepare("theirs", theirs, others)
    assert findings_of(tmp_path, "mine", "theirs") == [
        ("captions also in train", "mine test / theirs train", 1, 2, True),
        ("identical images", "mine test / theirs train", 1, 2, True),
        ("identical images", "mine train / theirs train", 1, 2, False),
        ("near-duplicate images", "mine test / theirs val", 1, 2, True),
    ]


def test_odd_sizes(scenes: list[Image.Image], prepare: Callable[..., None], tmp_path: Path) -> None:
    images = {f"{row}.png": image for row, image in enumerate(scenes)}
    images["3.png"] = scenes[3].crop((0, 0, 90, 96))
    images["4.png"] = scenes[4].crop((0, 0, 20, 96))
    prepare("odd", images, plain_rows(list(images)))
    assert findings_of(tmp_path) == [("odd sizes", "train", 1, 4, False), ("odd sizes", "val", 1, 4, False)]


def test_a_model_that_sees_two_images_unmakes_a_pair(
    scenes: list[Image.Image], prepare: Callable[..., None], tmp_path: Path
) -> None:
    images = {"0.png": scenes[0], "1.png": scenes[1], "2.jpg": scenes[0], "3.jpg": scenes[1]}
    prepare("pairs", images, [(file, "train", f"an own caption {file}") for file in images])
    asked: list[str] = []

    def features_of(refs: Any) -> Any:
        asked.extend(ref.path.name for ref in refs)
        vectors = {"0.png": (1, 0), "2.jpg": (1, 0), "1.png": (1, 0), "3.jpg": (0, 1)}
        return np.array([vectors[ref.path.name] for ref in refs], dtype=np.float32)

    found: Audit = audit(AuditRequest(), Workspace(tmp_path), Silent(), features_of)
    (finding,) = found.findings
    assert sorted(asked) == sorted(images)
    assert [(item.image_id, item.other, item.cosine) for item in finding.items] == [("0", "2", 1.0)]


def test_items_are_limited_and_all_are_counted(tmp_path: Path) -> None:
    content = [{"image": f"{row}.jpg", "caption": "", "split": "train"} for row in range(MOST_ITEMS + 5)]
    (tmp_path / "blank.json").write_text(json.dumps(content))
    (finding,) = audit(AuditRequest(str(tmp_path / "blank.json")), Workspace(tmp_path), Silent()).findings
    assert (finding.found, len(finding.items)) == (MOST_ITEMS + 5, MOST_ITEMS)


def test_an_unknown_data_set_and_a_missing_library_are_named(
    cmpagl: Cmpagl, tiny_prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cmpagl("audit", "nothing").exit_code == 3
    plainly = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "imagehash":
            raise ImportError(name)
        return plainly(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    result = cmpagl("audit", tiny_prepared)
    assert result.exit_code == 2
    assert "pip install 'cmpagl[audit]', or pass --no-near" in result.stderr
    assert cmpagl("audit", tiny_prepared, "--no-near").exit_code == 0


def test_a_run_confirms_near_duplicates(cmpagl: Cmpagl, tiny_prepared: Path, tiny_run: Path) -> None:
    result = cmpagl("audit", tiny_prepared, "--run", tiny_run, "--format", "csv")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("check,where,found,of,leak,examples\n")
