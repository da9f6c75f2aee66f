"""A run folder is whole or refused, and says what is wrong with it."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cmpagl_core.errors import CmpaglError, DataError, MismatchError
from cmpagl_core.files import partial_prefix
from cmpagl_core.models.bert import BertShape
from cmpagl_core.progress import Silent
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import parse_recipe
from cmpagl_core.runs import (
    BestEpoch,
    Code,
    RunInfo,
    Seen,
    current_code,
    current_versions,
    list_runs,
    open_run,
    read_tensors,
    save_run,
    write_tensors,
)
from cmpagl_core.workspace import Workspace

TOKENIZER = '{"version": "1.0"}'
SEEN = Seen(frozenset({"a" * 64, "b" * 64}), frozenset({"0123456789abcdef"}), frozenset({"c" * 64}))


def small_info(recipe: Recipe) -> RunInfo:
    return RunInfo(
        name="small",
        dataset="synthetic",
        dataset_root="data/synthetic",
        manifest_sha256="0" * 64,
        train_sha256="1" * 64,
        selection_sha256="2" * 64,
        recipe_name="small",
        recipe_sha256=recipe.sha256(),
        code=Code("0.1.0", None),
        versions=current_versions(),
        best=BestEpoch(epoch=3, mr=41.5),
        vocab_size=99,
        text_shape=BertShape(99, 128, 4, 4, 512).to_dict(),
        seed=0,
        epochs=5,
        parameters=10,
        elapsed_s=1.5,
        seconds_per_epoch=0.3,
        started_at="2024-01-01T00:00:00+00:00",
        device="cpu",
        threads=2,
        precision="fp32",
    )


def small_run(root: Path) -> Path:
    recipe = Recipe()
    save_run(root, recipe, small_info(recipe), {"weight": torch.arange(6.0).reshape(2, 3)}, TOKENIZER, SEEN)
    return root


@contextmanager
def disk_of(free_bytes: int) -> Iterator[None]:
    """Let no file grow beyond `free_bytes`: writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_saved_run_opens_with_what_was_saved(tmp_path: Path) -> None:
    run = open_run(small_run(tmp_path / "run"))
    assert run.recipe == Recipe()
    assert replace(run.info, files={}, made_at="") == small_info(Recipe())
    assert run.seen == SEEN
    assert run.info.made_at > run.info.started_at
    assert set(run.info.files) == {"model.safetensors", "recipe.yaml", "tokenizer.json", "seen.json"}
    assert torch.equal(read_tensors(run.weights_path)["weight"], torch.arange(6.0).reshape(2, 3))


def test_saving_equal_weights_twice_gives_equal_bytes(tmp_path: Path) -> None:
    first, second = small_run(tmp_path / "a"), small_run(tmp_path / "b")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_tensors_that_share_memory_or_are_strided_are_stored(tmp_path: Path) -> None:
    table = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "t.safetensors", {"a": table, "b": table, "c": table.T}, {"format_version": 1})
    back = read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(back["b"], table)
    assert torch.equal(back["c"], table.T)


@pytest.mark.parametrize("missing", ["run.json", "recipe.yaml", "model.safetensors", "tokenizer.json", "seen.json"])
def test_a_folder_without_one_of_its_files_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    root = small_run(tmp_path / "run")
    (root / missing).unlink()
    with pytest.raises(DataError, match=rf"run is not a finished run: it has no {missing}; train one with"):
        open_run(root)


def test_an_unfinished_run_says_how_to_finish_it(tmp_path: Path) -> None:
    (tmp_path / "run" / "resume").mkdir(parents=True)
    with pytest.raises(DataError, match="finish it with `cmpagl train --resume`"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("format_version", 99, "format_version is 99, this cmpagl reads 3"),
        ("format_version", 1, "format_version is 1, this cmpagl reads 3; use the cmpagl that wrote it, or train again"),
        ("best", {"epoch": "many", "mr": 1.0}, r"best.epoch: Input should be a valid integer"),
        ("files", {}, r"run.json has no hash of recipe.yaml"),
        ("versions", 3, "versions: Input should be a valid dictionary"),
    ],
)
def test_a_wrong_run_json_names_the_key(tmp_path: Path, key: str, value: object, sentence: str) -> None:
    root = small_run(tmp_path / "run")
    content = json.loads((root / "run.json").read_text())
    (root / "run.json").write_text(json.dumps(content | {key: value}))
    with pytest.raises(DataError, match=sentence):
        open_run(root)


def test_a_run_json_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    root = small_run(tmp_path / "run")
    (root / "run.json").write_text("[1, 2]")
    with pytest.raises(DataError, match="format_version is None"):
        open_run(root)


def test_weights_of_another_run_are_refused(tmp_path: Path) -> None:
    run = open_run(small_run(tmp_path / "run"))
    write_tensors(run.weights_path, {"weight": torch.zeros(2, 3)}, {})
    for open_it in (run.load, lambda: open_run(run.root)):
        with pytest.raises(MismatchError, match=r"safetensors is not the file that run\.json beside it describes"):
            open_it()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("recipe.yaml", "pooling: cls", "pooling: mean"), ("tokenizer.json", "1.0", "1.1"), ("seen.json", "aa", "ab")],
)
def test_a_file_that_was_edited_since_is_refused(tmp_path: Path, name: str, old: str, new: str) -> None:
    root = small_run(tmp_path / "run")
    path = root / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(MismatchError, match=rf"{name} is not the file that run\.json beside it describes .*restore"):
        open_run(root).seen  # noqa: B018


def test_a_run_that_was_copied_opens_though_its_files_have_other_times(tmp_path: Path) -> None:
    root = small_run(tmp_path / "run")
    os.utime(root / "model.safetensors", (0, 0))
    assert open_run(root).info.weights_sha256


def test_the_newest_run_comes_first_whatever_was_touched(tmp_path: Path) -> None:
    for name in ("older", "newer"):
        small_run(tmp_path / "runs" / name)
    (tmp_path / "runs" / "older" / "run.json").touch()
    assert [run.root.name for run in list_runs(Workspace(tmp_path), Silent())] == ["newer", "older"]


def test_weights_that_do_not_fit_the_recipe_are_refused(tmp_path: Path) -> None:
    recipe = parse_recipe(TINY, "tiny")
    run = save_run(tmp_path, recipe, small_info(recipe), {"weight": torch.zeros(1)}, TOKENIZER, SEEN)
    with pytest.raises(MismatchError, match=r"model\.safetensors does not fit .*recipe\.yaml .*Missing key"):
        run.load()


def test_a_truncated_weights_file_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"weight": torch.zeros(100)}, {})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"w\.safetensors cannot be read as safetensors"):
        read_tensors(path)


def test_a_full_disk_leaves_the_old_weights_and_nothing_half_written(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"weight": torch.zeros(10)}, {})
    before = path.read_bytes()
    with disk_of(4096), pytest.raises(CmpaglError, match=r"cannot write .*nothing was left half written"):
        write_tensors(path, {"weight": torch.zeros(100_000)}, {})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


def test_what_a_library_writes_beside_its_file_has_a_name_that_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets: list[Path] = []

    def save_file(tensors: object, path: Path, metadata: object) -> None:
        targets.append(path)
        (path.parent / ".tmpAbCdEf").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(tmp_path / "model.safetensors", {}, {})
    assert targets[0].parent.name.startswith(partial_prefix(tmp_path / "model.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_the_code_is_named_by_version_and_commit() -> None:
    code = current_code()
    assert code.version
    assert code.commit is None or len(code.commit.removesuffix("-dirty")) == 40


TINY = """
data: {image_size_px: 32, max_caption_tokens: 16}
image_encoder: {size: custom, width: 8, depths: [1, 1, 1, 1], num_heads: [1, 1, 1, 1], window_size: 2}
text_encoder: {size: tiny}
"""
