"""Archives that lie about their size, their end or their depth are refused whole."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmpagl_core.errors import ExitCode

Told = Callable[..., str]

HOLE = 3 << 30
PREPARE = ("prepare", "ucm", "--annotations", "captions.csv", "--skip-missing", "--images")


def image(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def whole_tar(folder: Path) -> bytes:
    """Eight images; their captions lie beside the archive."""
    rows = ["file,caption", *(f"{number}.png,an image of kind {number}" for number in range(8))]
    (folder / "captions.csv").write_text("\n".join(rows), encoding="utf-8")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in {f"{number}.png": image(number) for number in range(8)}.items():
            member = tarfile.TarInfo(f"set/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def headers(content: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [member.offset for member in archive]


def cut_at_a_header(content: bytes) -> bytes:
    return content[: headers(content)[5]]


def cut_in_a_header(content: bytes) -> bytes:
    return content[: headers(content)[5] + 100]


def cut_in_an_image(content: bytes) -> bytes:
    return content[: headers(content)[5] + 600]


def flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[headers(content)[5] + 3] ^= 1
    return bytes(changed)


def without_end(content: bytes) -> bytes:
    return content.rstrip(b"\0")


def gnu_sparse(content: bytes) -> bytes:
    """An old GNU header of a file that is one byte and a hole of 3 GiB."""
    block = bytearray(512)
    block[0:100] = b"set/hole.png".ljust(100, b"\0")
    block[100:136] = b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % 1
    block[136:148] = b"%011o\0" % 0
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[257:265] = b"ustar  \0"
    block[386:410] = b"%011o\0" % (HOLE - 1) + b"%011o\0" % 1
    block[483:495] = b"\x80" + struct.pack(">Q", HOLE).rjust(11, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + b"x".ljust(512, b"\0") + content


def pax_sparse(content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("set/hole.png")
        member.size = 1
        member.pax_headers = {
            "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "set/hole.png",
            "GNU.sparse.size": str(HOLE), "GNU.sparse.numblocks": "1", "GNU.sparse.map": f"{HOLE - 1},1",
        }  # fmt: skip
        archive.addfile(member, io.BytesIO(b"x"))
    return stream.getvalue().rstrip(b"\0").ljust(2048, b"\0") + content


TARS = {
    "cut at a header": (cut_at_a_header, "is truncated, or one of its headers is broken"),
    "cut in a header": (cut_in_a_header, "is truncated, or one of its headers is broken"),
    "cut in an image": (cut_in_an_image, "is a broken archive"),
    "a bit of a header flipped": (flipped, "is truncated, or one of its headers is broken"),
    "without its end": (without_end, ""),
    "a sparse file of GNU's old kind": (gnu_sparse, "contains a sparse file, 'set/hole.png'"),
    "a sparse file of the PAX kind": (pax_sparse, "contains a sparse file, 'set/hole.png'"),
}


@pytest.mark.parametrize(("spoil", "said"), TARS.values(), ids=TARS)
def test_a_hostile_tar_is_refused_whole(spoil: Callable[[bytes], bytes], said: str, told: Told, tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(spoil(whole_tar(tmp_path)))
    assert said in told(*PREPARE, "set.tar", code=ExitCode.DATA)
    assert list(tmp_path.rglob("*.png")) == []


def test_the_tar_that_they_are_made_of_is_taken(told: Told, tmp_path: Path) -> None:
    (tmp_path / "set.tar").write_bytes(whole_tar(tmp_path))
    told(*PREPARE, "set.tar", code=ExitCode.DONE)
    assert len(list(tmp_path.rglob("*.png"))) == 8


@pytest.mark.parametrize("depth", [60, 2_000])
def test_deeply_nested_folders_in_a_zip_are_refused(depth: int, told: Told, tmp_path: Path) -> None:
    whole_tar(tmp_path)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a/" * depth + "a.png", image(0))
    assert "nests more than 50 folders" in told(*PREPARE, "set.zip", code=ExitCode.DATA)
