"""`index` and `retrieve` with an open_clip model in place of a run: nothing has to be trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Ask = Callable[..., Result]


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def spec(tiny_clip: Path) -> str:
    return f"open_clip:{tiny_clip / 'tiny-clip.json'}:{tiny_clip / 'plain.pt'}"


def test_a_folder_is_indexed_and_asked_with_an_open_clip_model(
    cmpagl: Ask, spec: str, tiny_images: Path, tmp_path: Path
) -> None:
    made = answer(cmpagl("index", tiny_images, "--name", "archive", "--model", spec, "--format", "json"))[0]
    assert (made["images"], made["encoded"], made["model"]) == (12, 12, "open_clip:tiny-clip:plain.pt")
    assert not (tmp_path / "runs").exists()
    hits = answer(cmpagl("retrieve", "a bright square", "--format", "json"))
    assert len(hits) == 10
    again = answer(cmpagl("index", tiny_images, "--name", "archive", "--format", "json"))[0]  # as it was made
    assert again["encoded"] == 0
    assert answer(cmpagl("retrieve", "a bright square", "--format", "json")) == hits
    image = tiny_images / "north" / "scene_05.jpg"
    best = answer(cmpagl("retrieve", "--image", image, "-k", "1", "--format", "json"))[0]
    assert best["image_id"] == "north/scene_05.jpg"
    assert best["score"] == pytest.approx(1.0, abs=1e-6)


def test_a_data_set_is_indexed_with_an_open_clip_model(cmpagl: Ask, spec: str, tiny_prepared: Path) -> None:
    made = answer(cmpagl("index", "--data", tiny_prepared, "--model", spec, "--format", "json"))[0]
    assert (made["name"], made["images"], made["captions"]) == ("tiny-clip-tiny", 12, 24)
    more = ("--data", tiny_prepared, "--name", "tiny-clip-tiny", "--format", "json")
    assert answer(cmpagl("index", *more))[0]["encoded"] == 0  # with the model that made it
    captions = answer(cmpagl("caption", next(tiny_prepared.parent.parent.parent.rglob("scene_05.jpg")),
                             "--format", "json"))  # fmt: skip
    assert len(captions) == 10


def test_an_open_clip_index_is_asked_with_no_other_model(
    cmpagl: Ask, spec: str, tiny_clip: Path, tiny_run: Path, tiny_images: Path, tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    spec = f"open_clip:{mine / 'tiny-clip.json'}:{mine / 'plain.pt'}"
    assert cmpagl("index", tiny_images, "--name", "archive", "--model", spec).exit_code == 0
    refused = cmpagl("retrieve", "square", "--run", tiny_run)
    assert refused.exit_code == 5
    assert "has features of another model" in refused.stderr
    (mine / "plain.pt").unlink()
    gone = cmpagl("retrieve", "square")
    assert gone.exit_code == 3
    assert "plain.pt is neither a file nor" in gone.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--run", "tiny"], "--model and --run both name a model"),
        (["--tta", "none"], "--tta is for runs"),
    ],
)
def test_what_contradicts_itself_is_refused(cmpagl: Ask, spec: str, more: list[str], said: str) -> None:
    result = cmpagl("index", ".", "--model", spec, *more)
    assert result.exit_code == 2
    assert said in result.stderr


def test_models_are_listed_and_shown(cmpagl: Ask, tmp_path: Path) -> None:
    rows = answer(cmpagl("models", "list", "--format", "json"))
    assert {"remoteclip-b32", "georsclip-h14", "skyclip-l14"} <= {row["name"] for row in rows}
    assert not any(row["here"] or row["verified"] for row in rows)
    shown = answer(cmpagl("models", "show", "remoteclip-b32", "--format", "json"))
    assert (shown["activation"], shown["licence"]) == ("quickgelu", "Apache-2.0")
    unknown = cmpagl("models", "show", "remoteclip")
    assert unknown.exit_code == 2
    assert "known are remoteclip-b32" in unknown.stderr


def test_an_index_without_a_run_names_the_models_that_need_none(cmpagl: Ask, tiny_images: Path) -> None:
    result = cmpagl("index", tiny_images)
    assert result.exit_code == 3
    assert "or search with a published model: --model remoteclip-b32" in result.stderr


def test_options_of_a_model_need_one(cmpagl: Ask, tiny_images: Path) -> None:
    for command in (("index", tiny_images), ("export",)):
        result = cmpagl(*command, "--download")
        assert result.exit_code == 2
        assert "--download are for --model" in result.stderr


def test_templates_belong_to_an_index_and_change_only_its_texts(
    cmpagl: Ask, spec: str, tiny_prepared: Path, tiny_images: Path
) -> None:
    made = ("index", "--data", tiny_prepared, "--model", spec, "--name", "a", "--format", "json")
    answer(cmpagl(*made))
    plain = answer(cmpagl("retrieve", "a square", "--format", "json"))
    again = answer(cmpagl(*made, "--template", "a photo of {}.", "--template", "{} from above"))[0]
    assert again["encoded"] == 0  # images are the same
    worded = answer(cmpagl("retrieve", "a square", "--format", "json"))
    assert [hit["score"] for hit in worded] != [hit["score"] for hit in plain]
    assert answer(cmpagl(*made))[0]["encoded"] == 0  # as it was made, templates too
    assert answer(cmpagl("retrieve", "a square", "--format", "json")) == worded
    out = ("export", "--data", tiny_prepared, "--model", spec, "--split", "all", "--out", "f.safetensors")
    assert cmpagl(*out, "--template", "a photo of {}.", "--template", "{} from above").exit_code == 0
    of_file = answer(cmpagl("retrieve", "a square", "--index", "a", "--format", "json"))
    assert of_file == worded
    wrong = cmpagl(*made, "--template", "no place")
    assert wrong.exit_code == 2
    assert "does not have exactly one {}" in wrong.stderr
