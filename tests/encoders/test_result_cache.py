"""A split is encoded once for all commands, and a cached result that is not exactly that is computed again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from cmpagl_core.datasets.prepared import DataSplit, open_prepared
from cmpagl_core.encoders import split_encoder
from cmpagl_core.encoders.result_cache import Result, ResultCache, Values
from cmpagl_core.encoders.split_encoder import SplitEncoder
from cmpagl_core.encoders.tensor_file import open_tensor_file, write_tensor_file
from cmpagl_core.errors import DataError, ExitCode
from cmpagl_core.evaluation import choosing
from cmpagl_core.recipe_files import override_recipe
from cmpagl_core.runs import Run, open_run
from cmpagl_core.session import Session
from cmpagl_core.workspace import Workspace
from tests.conftest import Cmpagl, Told

CPU = torch.device("cpu")
QUICK = ("--samples", "10")


@pytest.fixture
def workspace(tiny_run: Path, tmp_path: Path) -> Path:
    leftovers = shutil.ignore_patterns("indexes", "evaluations", "cache")  # of other tests that use the same run
    shutil.copytree(tiny_run.parent.parent, tmp_path, dirs_exist_ok=True, ignore=leftovers)
    return tmp_path


@pytest.fixture
def split(workspace: Path) -> DataSplit:
    return open_prepared(workspace / "data/tiny").split("test")


def run_in(workspace: Path) -> Run:
    return open_run(workspace / "runs/tiny")


def encoder_in(workspace: Path, run: Run | None = None, said: Told | None = None) -> SplitEncoder:
    return SplitEncoder(run or run_in(workspace), Session(Workspace(workspace), said or Told(), lambda: CPU))


def results_of(workspace: Path) -> list[Path]:
    return sorted((workspace / "cache/features").glob("*"))


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("it was encoded again")


def test_commands_share_what_one_of_them_encoded(
    cmpagl: Cmpagl, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[str | Path, ...]] = [
        ("evaluate", "--rerank", "all", "--format", "json", *QUICK),
        ("evaluate", "--rerank", "all", "--format", "json", *QUICK),
        ("report", "--again", "--out", workspace / "page.html"),
        ("export", "--split", "test", "--out", workspace / "test.safetensors"),
        ("export", "--split", "test", "--scores", "--out", workspace / "test.npy"),
        ("tune", "smr", "--gammas", "0,1", "--no-keep"),
        ("tune", "sensitivity", "--gammas", "0,1", *QUICK),
    ]
    outputs = []
    for number, command in enumerate(commands):
        outputs.append(cmpagl(*command))
        assert outputs[-1].exit_code == ExitCode.DONE, outputs[-1].output
        if number == 0:
            monkeypatch.setattr(Run, "load", never)
            for module, name in (
                (split_encoder, "encode_images"),
                (split_encoder, "encode_captions"),
                (choosing, "match_split"),
            ):
                monkeypatch.setattr(module, name, never)
    assert outputs[0].stdout == outputs[1].stdout
    assert "features of the test split are from" in outputs[1].stderr
    other = cmpagl("export", "--split", "train", "--out", workspace / "train.safetensors")
    assert isinstance(other.exception, SystemExit | AssertionError)
    assert "it was encoded again" in other.output


@pytest.mark.parametrize("overrides", [["evaluate.tta=d4"], ["train.precision=bf16"]])
def test_other_views_and_another_precision_are_other_results(
    workspace: Path, split: DataSplit, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmpagl_core.device._computes", lambda *_: True)
    run = run_in(workspace)
    encoder_in(workspace, run).features(split)
    before = results_of(workspace)
    other = encoder_in(workspace, replace(run, recipe=override_recipe(run.recipe, overrides)))
    made = other.features(split)
    assert len(results_of(workspace)) > len(before)
    assert (made.image_features == SplitEncoder(other.run).features(split).image_features).all()


def test_another_model_or_other_images_are_other_results(workspace: Path, split: DataSplit) -> None:
    encoder = encoder_in(workspace)
    key = encoder._image_features(split).key
    run = run_in(workspace)
    stamp = replace(run.info.files["model.safetensors"], sha256="0" * 64)
    other_run = replace(run, info=replace(run.info, files={**run.info.files, "model.safetensors": stamp}))
    changed = replace(split, image_sha256=("0" * 64, *split.image_sha256[1:]))
    turned = split.subset(range(len(split))[::-1])
    others = [encoder_in(workspace, other_run)._image_features(split).key]
    others += [encoder._image_features(one).key for one in (changed, turned)]
    assert len({key, *others}) == 4


def flipped(path: Path, _: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def truncated(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def emptied(path: Path, _: Path) -> None:
    path.write_bytes(b"")


def exchanged(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def not_unit(path: Path, _: Path) -> None:
    file = open_tensor_file(path)
    values = np.array(file.arrays["values"]) * 2
    write_tensor_file(path, {"values": values}, file.about)


@pytest.mark.parametrize("damage", [flipped, truncated, emptied, exchanged, not_unit])
def test_a_damaged_or_foreign_result_is_computed_again_and_replaced(
    workspace: Path, split: DataSplit, damage: Callable[[Path, Path], None]
) -> None:
    truth = encoder_in(workspace).features(split)
    one, other = results_of(workspace)
    damage(one, other)
    said = Told()
    found = encoder_in(workspace, said=said).features(split)
    assert any(message.startswith("computed again: ") and str(one) in message for message in said.messages)
    np.testing.assert_array_equal(found.image_features, truth.image_features)
    np.testing.assert_array_equal(found.text_features, truth.text_features)
    again = Told()
    encoder_in(workspace, said=again).features(split)
    assert [message for message in again.messages if "again" in message] == []


def test_a_workspace_that_cannot_be_written_is_no_obstacle(workspace: Path, split: DataSplit) -> None:
    (workspace / "cache").write_text("a file where the folder would be")
    said = Told()
    assert len(encoder_in(workspace, said=said).features(split).image_ids) == len(split)
    assert all(message.startswith("not cached: ") for message in said.messages)
    assert len(said.messages) == 2


def ones(what: str, rows: int = 250, compute: Callable[[], Values] | None = None) -> Result:
    return Result({"what": what}, (rows,), lambda _: True, compute or (lambda: np.ones(rows, np.float32)))


def test_the_least_recently_used_results_make_room(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path, Told(), most_bytes=3000)  # a file is a kilobyte and its header
    results = [ones(name) for name in "abc"]
    for second, result in enumerate(results[:2], start=1):
        cache.get(result)
        os.utime(cache._path(result), (second, second))
    cache.get(results[0])  # used now
    cache.get(results[2])
    assert [result in cache for result in results] == [True, False, True]
    cache.get(ones("larger than all", rows=2000))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> NoReturn:
        raise DataError("an image cannot be read")

    cache = ResultCache(tmp_path / "features", Told())
    with pytest.raises(DataError, match="an image cannot be read"):
        cache.get(ones("a", compute=fail))
    assert not (tmp_path / "features").exists()
