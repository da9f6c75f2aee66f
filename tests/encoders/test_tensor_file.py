"""Our safetensors are everybody's safetensors, and a broken one is refused with a sentence."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from cmpagl_core.encoders.tensor_file import TextTable, open_tensor_file, write_tensor_file
from cmpagl_core.errors import DataError

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.offsets": np.array([0, 5], dtype=np.int64),
    "empty": np.empty((0, 7), dtype=np.float16),
    "scalar": np.array(3, dtype=np.int32),
}


def test_the_safetensors_package_reads_what_we_write(tmp_path: Path) -> None:
    write_tensor_file(tmp_path / "x.safetensors", ARRAYS, {"kind": "test"})
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_mapped_numbers_are_aligned_whatever_texts_lie_beside_them(tmp_path: Path) -> None:
    write_tensor_file(tmp_path / "x", {**TextTable.of(["odd"]).arrays("a"), **ARRAYS}, {})
    assert all(array.flags.aligned for array in open_tensor_file(tmp_path / "x").arrays.values())


def test_we_map_what_the_safetensors_package_writes(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "x.safetensors", metadata={"cmpagl": '{"kind": "test"}'})
    found = open_tensor_file(tmp_path / "x.safetensors")
    assert found.about == {"kind": "test"}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    with pytest.raises(ValueError, match="read-only"):
        found.arrays["a"][0, 0] = 1


def test_equal_content_gives_equal_bytes_in_any_order(tmp_path: Path) -> None:
    about = {"x": 1, "y": "\N{AIRPLANE}"}
    write_tensor_file(tmp_path / "1", ARRAYS, about)
    write_tensor_file(tmp_path / "2", dict(reversed(ARRAYS.items())), dict(reversed(about.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@given(st.lists(st.text()))
def test_texts_come_back_one_by_one(texts: list[str]) -> None:
    table = TextTable.of(texts)
    printable = [text.encode("utf-8", "replace").decode() for text in texts]
    assert len(table) == len(texts)
    assert list(table) == printable
    assert [table[row] for row in range(len(texts))] == printable
    assert table[1:3] == tuple(printable[1:3])


def test_a_file_name_that_is_no_utf8_survives() -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    assert TextTable.of([name])[0] == name


def header_and(data: bytes, header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"__metadata__": {"cmpagl": "{}"}, "a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "too short"),
        (b"short", "too short"),
        (struct.pack("<Q", 1 << 62) + b"{}", "header is longer"),
        (struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc", "header is not JSON"),
        (header_and(b"", [1]), "not a JSON object"),
        (header_and(b"", {"a": 1}), "header is broken"),
        (header_and(b"", {"__metadata__": 3}), "header is broken"),
        (header_and(bytes(8), entry([2], [0, 8], "F8_E5M2")), "of type"),
        (header_and(bytes(8), entry([3], [0, 12])), "outside the file"),
        (header_and(bytes(8), entry([3], [0, 8])), "a number of bytes that does not match"),
        (header_and(bytes(8), entry([-2], [0, 8])), "outside the file"),
        (header_and(bytes(8), entry([1 << 62, 1 << 62, 0], [0, 8])), "a number of bytes that does not match"),
        (header_and(bytes(8), entry([2], [8, 0])), "a number of bytes that does not match"),
        (header_and(bytes(8), entry([1], [4, 8])), "holes"),
        (header_and(bytes(12), entry([2], [0, 8])), "more bytes"),
        (header_and(bytes(8), {"a": entry([2], [0, 8])["a"]}), "not written by cmpagl"),
    ],
)
def test_a_hostile_file_is_refused_with_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        open_tensor_file(path)
    assert "hostile.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_tensor_file(tmp_path / "none")
    with pytest.raises(DataError, match="cannot be read"):
        open_tensor_file(tmp_path)


def test_text_offsets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for offsets in ([0, 2, 1, 3], [1, 3], [0, 9], [0, -1, 3]):
        arrays = {"t.bytes": np.zeros(3, dtype=np.uint8), "t.offsets": np.array(offsets, dtype=np.int64)}
        write_tensor_file(tmp_path / "x", arrays, {})
        with pytest.raises(DataError, match="do not fit the bytes"):
            open_tensor_file(tmp_path / "x").texts("t")


@given(st.binary(max_size=60), st.integers(0, 300))
def test_any_change_of_the_bytes_opens_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x"
    write_tensor_file(path, ARRAYS, {"kind": "test"})
    content = bytearray(path.read_bytes())
    content[at : at + len(noise)] = noise
    path.write_bytes(bytes(content))
    refused = ""
    try:
        open_tensor_file(path)
    except DataError as error:
        refused = str(error)
    assert "\n" not in refused
