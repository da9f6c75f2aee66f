"""What is no plain file is written through or refused, links stay, and artefacts that were tampered with are named."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmpagl_core.encoders.tensor_file import TextTable, open_tensor_file, write_tensor_file
from cmpagl_core.errors import CmpaglError, DataError, ExitCode
from cmpagl_core.files import write_text
from cmpagl_core.runs import open_run

Told = Callable[..., str]

posix = pytest.mark.skipif(os.name != "posix", reason="makes pipes, devices and links")


@posix
def test_a_pipe_gets_what_is_written_and_stays_one(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "all of it")
    reader.join()
    assert read == ["all of it"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@posix
def test_a_device_is_written_to_and_stays_one() -> None:
    write_text(Path("/dev/null"), "gone")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


@posix
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_device_is_named() -> None:
    with pytest.raises(CmpaglError, match=r"cannot write /dev/full \(No space left on device\)"):
        write_text(Path("/dev/full"), "nothing fits")


@posix
@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
def test_a_link_stays_and_what_it_leads_to_is_replaced(there: bool, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    file, link = tmp_path / "far" / "file", tmp_path / "link"
    if there:
        file.write_text("old")
    link.symlink_to(file)
    write_text(link, "new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["file"]


@posix
def test_folders_sockets_and_circles_of_links_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    Path("folder").mkdir()
    Path("circle").symlink_to("circle")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        for name, said in (
            ("folder", "it is a folder"),
            ("socket", "it is a socket"),
            ("circle", "cannot write circle"),
        ):
            with pytest.raises(CmpaglError, match=said):
                write_text(Path(name), "x")


@posix
def test_commands_keep_links_and_devices(told: Told, tiny_run: Path, tmp_path: Path) -> None:
    workspace = ("--workspace", tiny_run.parent.parent)
    page = tmp_path / "page.html"
    (tmp_path / "page").symlink_to(page)
    told(*workspace, "export", "--out", "/dev/null", code=ExitCode.DONE)
    told(*workspace, "retrieve", "a square", "--gallery", "page", code=ExitCode.DONE)
    told(*workspace, "report", "--out", "page", code=ExitCode.DONE)
    assert (tmp_path / "page").is_symlink()
    assert page.is_file()
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert "it is a folder" in told(*workspace, "export", "--out", tmp_path, code=ExitCode.FAILURE)


def with_header(path: Path, change: Callable[[str], str]) -> None:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = change(content[8 : 8 + length].decode()).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])


def test_a_header_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensor_file(path, {"a": np.zeros(4, dtype=np.float32)}, {"kind": "x"})
    entry = '"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
    with_header(path, lambda header: header.replace(entry, f"{entry},{entry}"))
    with pytest.raises(DataError, match="its header has a duplicate key"):
        open_tensor_file(path)


@pytest.mark.parametrize("name", ["captions", "image_ids"])
def test_texts_of_a_feature_set_that_are_not_utf_8_are_refused(
    name: str, told: Told, tiny_run: Path, tmp_path: Path
) -> None:
    workspace = ("--workspace", tiny_run.parent.parent)
    path = tmp_path / "f.safetensors"
    told(*workspace, "export", "--out", path, code=ExitCode.DONE)
    file = open_tensor_file(path)
    texts = [text.encode() for text in file.texts(name)]
    texts[1] = b"\xff\xfe" + texts[1]
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int64)
    table = TextTable(np.frombuffer(b"".join(texts), dtype=np.uint8), offsets)
    write_tensor_file(tmp_path / "g.safetensors", {**file.arrays, **table.arrays(name)}, file.about)
    answer = told(*workspace, "evaluate", "--features", tmp_path / "g.safetensors", code=ExitCode.DATA)
    assert f"row 1 of {name} is not UTF-8 text" in answer


ABSURD: dict[str, Callable[[dict[str, Any]], None]] = {
    "words": lambda info: info.update(vocab_size=10**12),
    "embeddings": lambda info: info["text_shape"].update(vocab_size=1_999_999),
    "more embeddings": lambda info: info["text_shape"].update(vocab_size=10**12),
    "width": lambda info: info["text_shape"].update(hidden_size=16_384),
    "layers": lambda info: info["text_shape"].update(num_layers=10**8),
    "half a head": lambda info: info["text_shape"].update(num_heads=1.5),
    "no positions": lambda info: info["text_shape"].update(max_positions=0),
}


@pytest.mark.parametrize("change", ABSURD.values(), ids=ABSURD)
def test_an_absurd_size_in_run_json_is_refused_before_a_model_is_built(
    change: Callable[[dict[str, Any]], None], told: Told, tiny_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "tampered"
    shutil.copytree(tiny_run, run)
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    change(info)
    (run / "run.json").write_text(json.dumps(info), encoding="utf-8")
    assert open_run(run)
    workspace = ("--workspace", tiny_run.parent.parent)
    told(*workspace, "export", "--out", tmp_path / "true.safetensors", code=ExitCode.DONE)  # caches the true features
    told(*workspace, "export", "--run", run, "--out", tmp_path / "f.safetensors", code=ExitCode.MISMATCH)
