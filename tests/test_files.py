"""Files are old or new, never half written; hashes are what others compute too."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.files import (
    FileStamp,
    atomic_file,
    canonical_json,
    newest,
    now,
    read_json,
    scratch_folder,
    sha256_file,
    sha256_text,
    sha256_unordered,
    write_bytes,
    write_json,
    write_text,
)
from cmpagl_core.processes import Process, own_process

DEAD = Process(own_process().host, 2**22 + 1, 1).tag  # no pid is that high


def write_half(target: Path, end: BaseException) -> None:
    with atomic_file(target) as stream:
        stream.write("half of the new")
        raise end


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="killed"):
        write_half(target, RuntimeError("killed"))
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_ctrl_c_while_writing_leaves_no_partial_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "result.json", KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


def test_a_refused_write_is_said_with_the_place_and_the_way_out() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("this system has no /proc")
    target = Path("/proc/cannot-be-made/result.json")
    with pytest.raises(CmpaglError, match=r"cannot write /proc/cannot-be-made/result\.json .*nothing was left half"):
        write_text(target, "text")


def test_no_space_left_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "result.json"
    write_text(target, "old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(CmpaglError, match="No space left on device"):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_written_file_has_the_users_usual_rights(tmp_path: Path) -> None:
    write_bytes(tmp_path / "ours", b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "c.json", {"sea": "see \N{WATER WAVE}"})
    assert (tmp_path / "a" / "b" / "c.json").read_text(encoding="utf-8") == '{\n  "sea": "see \N{WATER WAVE}"\n}\n'


def test_json_without_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1,\n "b": }', r"x\.json:2: not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 200_000, "nested too deeply|not valid JSON"),
    ],
)
def test_broken_json_is_said_with_its_place(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_json(path)


def test_missing_json_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_json(tmp_path / "x.json")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.dictionaries(st.text(), x)))
def test_equal_content_has_one_spelling(content: object) -> None:
    backwards = dict(reversed(content.items())) if isinstance(content, dict) else content
    assert canonical_json(content) == canonical_json(backwards)
    assert json.loads(canonical_json(content)) == content


@given(st.binary(max_size=3_000))
def test_sha256_of_a_file_is_that_of_its_bytes(content: bytes) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"cmpagl-test-{os.getpid()}"
    try:
        path.write_bytes(content)
        assert sha256_file(path) == hashlib.sha256(content).hexdigest()
    finally:
        path.unlink(missing_ok=True)


@given(st.lists(st.text(), max_size=8), st.randoms())
def test_an_unordered_hash_forgets_order_and_nothing_else(items: list[str], random: object) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sha256_unordered(shuffled) == sha256_unordered(items)
    assert sha256_unordered([*items, ""]) != sha256_unordered(items)


def test_a_lone_surrogate_has_a_hash_too() -> None:
    assert sha256_text("\udcff") != sha256_text("\udcfe")


def test_the_newest_folder_is_the_one_that_was_made_last_and_not_the_one_that_was_touched_last(tmp_path: Path) -> None:
    assert newest(tmp_path, "run.json") is None
    for name in ("b", "a", "unfinished"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        write_json(tmp_path / name / "run.json", {"made_at": now()})
    os.utime(tmp_path / "b" / "run.json", (0, 0))
    assert newest(tmp_path, "run.json") == tmp_path / "b"


def test_a_mark_fits_a_file_by_time_or_else_by_content(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    mark = FileStamp.of(path)
    os.utime(path, (0, 0))
    assert mark.fits(path)
    path.write_bytes(b"two")
    assert not mark.fits(path)
    path.write_bytes(b"three")
    os.utime(path, ns=(mark.mtime_ns, mark.mtime_ns))
    assert not mark.fits(path)


def test_a_scratch_folder_is_removed_and_so_are_those_of_the_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f".cmpagl-itm.{DEAD}.x.partial").mkdir()
    (tmp_path / f".cmpagl-other.{DEAD}.x.partial").mkdir()
    with scratch_folder("itm") as folder:
        (folder / "tokens.npy").write_text("large")
        assert len(list(tmp_path.iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == [f".cmpagl-other.{DEAD}.x.partial"]


def test_a_write_removes_what_dead_processes_left_beside_it(tmp_path: Path) -> None:
    left = tmp_path / f".figure.png.{DEAD}.x.partial"
    left.write_text("half")
    living = tmp_path / f".figure.png.{own_process().tag}.x.partial"
    living.write_text("half")
    write_text(tmp_path / "figure.png", "whole")
    assert sorted(tmp_path.iterdir()) == sorted((living, tmp_path / "figure.png"))


def test_a_read_that_fails_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnBadSectors(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", lambda *_: OnBadSectors())
    with pytest.raises(OSError, match="Input/output error") as caught:
        sha256_file(tmp_path / "a")
    assert caught.value.filename == str(tmp_path / "a")
