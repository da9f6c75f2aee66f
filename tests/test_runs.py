"""A run folder is whole or refused, and says what is wrong with it."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cmpagl_core.errors import CmpaglError, DataError, MismatchError
from cmpagl_core.models.bert import BertShape
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import parse_recipe
from cmpagl_core.runs import (
    Best,
    Code,
    RunInfo,
    SmrChoice,
    current_code,
    current_versions,
    open_run,
    read_tensors,
    save_run,
    write_info,
    write_tensors,
)

TOKENIZER = '{"version": "1.0"}'


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
        best=Best(epoch=3, mr=41.5),
        smr=SmrChoice("multiply", 1.0, 4.0, 43.0),
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
    )


def small_run(root: Path) -> Path:
    recipe = Recipe()
    save_run(root, recipe, small_info(recipe), {"weight": torch.arange(6.0).reshape(2, 3)}, TOKENIZER)
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
    assert replace(run.info, weights_sha256="") == small_info(Recipe())
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


@pytest.mark.parametrize("missing", ["run.json", "recipe.yaml", "model.safetensors", "tokenizer.json"])
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
        ("format_version", 99, "format_version is 99, this cmpagl reads 1"),
        ("best", {"epoch": "many", "mr": 1.0}, r"best.epoch: Input should be a valid integer"),
        ("smr", {"form": "divide", "gamma1": 1, "gamma2": 1}, r"smr.form: Input should be 'multiply' or 'add'"),
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
    with pytest.raises(MismatchError, match=r"is not the file that run\.json beside it describes"):
        run.load()


def test_weights_that_do_not_fit_the_recipe_are_refused(tmp_path: Path) -> None:
    recipe = parse_recipe(TINY, "tiny")
    run = save_run(tmp_path, recipe, small_info(recipe), {"weight": torch.zeros(1)}, TOKENIZER)
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


def test_new_gammas_can_be_kept_in_a_run(tmp_path: Path) -> None:
    run = open_run(small_run(tmp_path / "run"))
    write_info(run.root, replace(run.info, smr=SmrChoice("add", 0.5, 2.0)))
    assert open_run(run.root).info.smr == SmrChoice("add", 0.5, 2.0)


def test_the_code_is_named_by_version_and_commit() -> None:
    code = current_code()
    assert code.version
    assert code.commit is None or len(code.commit.removesuffix("-dirty")) == 40


TINY = """
data: {image_size_px: 32, max_caption_tokens: 16}
image_encoder: {size: custom, width: 8, depths: [1, 1, 1, 1], num_heads: [1, 1, 1, 1], window_size: 2}
text_encoder: {size: tiny}
"""
