"""Zero-shot classification: names as words, truth by table or folder, and figures that a loop confirms."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmpagl_core.encoders.prompts import chosen_templates, encode_prompted, read_templates, written_templates
from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.evaluation.zero_shot import (
    Classes,
    ZeroShot,
    as_words,
    classify,
    draw_confusion,
    read_classes,
    write_predictions,
)
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.progress import Silent
from tests.conftest import Cmpagl, FakeEncoder

NAMES = ("blue", "green", "red")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("denseResidential", "dense residential"),
        ("storage_tanks", "storage tanks"),
        ("Tennis-Court12", "tennis court"),
        ("beach", "beach"),
    ],
)
def test_a_class_name_becomes_words(name: str, words: str) -> None:
    assert as_words(name) == words


def test_classes_are_read_from_a_table_or_a_list(tmp_path: Path) -> None:
    table = tmp_path / "classes.csv"
    table.write_text("filename,image,class\na.tif,a.jpg,beach\nb.tif,b.jpg,airport\n")
    found = read_classes(table)
    assert found == Classes(("airport", "beach"), {"a.jpg": 1, "b.jpg": 0})
    (tmp_path / "names.txt").write_text("beach\n\nairport\nbeach\n")
    listed = read_classes(tmp_path / "names.txt")
    assert listed == Classes(("beach", "airport"), {})
    assert listed.truth(ImageRef("x", Path("Airport_2/x.jpg"))) == 1
    assert listed.truth(ImageRef("x", Path("harbor/x.jpg"))) == -1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "x,y\n1,2\n", "no columns image and class"),
        ("a.txt", "beach\n", "has 1 classes"),
        ("a.csv", "class,image\nbeach\nport,a.jpg\n", "has 1 classes"),
        ("a.csv", f"image,class\na,{'x' * 200_000}\n", "is not a table"),
    ],
)
def test_a_file_without_classes_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_classes(tmp_path / name)


def random_result(seed: int = 0) -> ZeroShot:
    rng = np.random.default_rng(seed)
    ranked = np.stack([rng.permutation(6)[:5] for _ in range(40)])
    truth = rng.integers(-1, 6, 40)
    ids = tuple(f"=i{row}" for row in range(40))
    return ZeroShot("m", tuple("abcdef"), (), ids, ranked, rng.random(40), truth, ())


def test_accuracies_and_the_confusion_are_those_of_a_loop() -> None:
    found = random_result()
    known = [row for row in range(40) if found.truth[row] >= 0]
    for k in (1, 5):
        hits = sum(found.truth[row] in found.ranked[row, :k] for row in known)
        assert found.accuracy(k) == pytest.approx(100 * hits / len(known))
    counted = [
        [sum(found.truth[r] == a and found.ranked[r, 0] == b for r in known) for b in range(6)] for a in range(6)
    ]
    assert found.confusion().tolist() == counted
    for place, row in enumerate(found.rows()):
        mine = [r for r in known if found.truth[r] == place]
        assert row.images == len(mine)
        assert row.top1 == pytest.approx(100 * np.mean([found.ranked[r, 0] == place for r in mine]))
    low, high = found.interval(1) or (0, 0)
    assert 0 <= low < (found.accuracy(1) or 0) < high <= 100


def test_images_are_given_the_nearest_class(tiny_images: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_images, tmp_path / "images"))
    (root / "broken.jpg").write_bytes(b"no image")
    encoder = FakeEncoder()
    found = classify(encoder, root, Classes(NAMES, {"scene_03.jpg": 2}), [], Silent())
    texts = encoder.encode_texts(NAMES)
    for batch in encoder.encode_images([ImageRef(name, root / name) for name in found.image_ids]):
        np.testing.assert_array_equal(found.ranked[batch.rows, 0], (batch.features @ texts.T).argmax(axis=1))
    assert len(found.image_ids) == 12
    assert "broken.jpg" in found.left_out[0]
    assert int(found.known.sum()) == 1
    write_predictions(found, tmp_path / "p.csv")
    with (tmp_path / "p.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image_id"] for row in rows] == list(found.image_ids)
    assert sum(row["class"] == "red" for row in rows) == 1
    draw_confusion(found, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_templates_are_averaged_and_a_wrong_one_is_refused() -> None:
    encoder = FakeEncoder()
    templates = ("a satellite image of {}.", "{} from above")
    found = encode_prompted(encoder.encode_texts, NAMES, templates)
    both = [encoder.encode_texts([one.format(name) for name in NAMES]).astype(np.float64) for one in templates]
    expected = sum(both) / np.linalg.norm(sum(both), axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(encode_prompted(encoder.encode_texts, NAMES, ()), encoder.encode_texts(NAMES))
    for wrong in ("no place", "{} and {}"):
        with pytest.raises(UsageError, match=r"does not have exactly one \{\}"):
            chosen_templates([wrong], None)


def test_a_models_own_template_is_known_or_refused() -> None:
    assert chosen_templates(["own"], "skyclip-l14:weights.pt") == ("a satellite image. {}",)
    with pytest.raises(UsageError, match="no template of remoteclip-b32 is known"):
        chosen_templates(["own"], "remoteclip-b32")
    kept = written_templates(("a {}", "ä {}"))
    assert chosen_templates(None, None, kept) == read_templates(kept) == ("a {}", "ä {}")
    assert chosen_templates([], None, kept) == () == read_templates(written_templates(()))
    for text in ("x", "[" * 100_000, "[1]", '{"a {}": 1}', '["no place"]', "[]"):
        with pytest.raises(DataError, match="is no list of templates"):
            read_templates(text)


def test_the_command_scores_a_run_and_an_open_clip_model(
    cmpagl: Cmpagl, tiny_run: Path, tiny_clip: Path, tiny_images: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("north\nsouth\n")

    def told(*words: object) -> Any:
        more = ("--classes", "names.txt", "--format", "json", "--out", "p.csv")
        result = cmpagl("zeroshot", tiny_images, *more, *words)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    by_run = told("--run", tiny_run)
    assert by_run["images"] == 12
    assert 0 < by_run["of_known_class"] <= 12
    assert by_run["top5"] == 100.0
    spec = f"open_clip:{tiny_clip / 'tiny-clip.json'}:{tiny_clip / 'plain.pt'}"
    by_clip = told("--model", spec, "--template", "a satellite image of {}.")
    assert by_clip["templates"] == ["a satellite image of {}."]
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 13
    refused = cmpagl("zeroshot", tiny_images, "--classes", "none.txt")
    assert refused.exit_code == 3
