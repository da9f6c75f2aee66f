"""Sentences that sent people to the wrong place: each names what is really wrong, and where."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmpagl_core.errors import DataError, ExitCode
from cmpagl_core.evaluation.protocol import Overlap
from cmpagl_core.imagery.listing import list_images
from cmpagl_core.training.journal import read_journal

Told = Callable[..., str]


@pytest.fixture
def set_of_mine(tmp_path: Path, tiny_images: Path) -> Path:
    """A folder of images with one caption each, in the current folder."""
    folder = tmp_path / "mine"
    shutil.copytree(tiny_images, folder)
    rows = [f"{path.relative_to(folder)},a caption of {path.stem}" for path in sorted(folder.rglob("*.jpg"))]
    (folder / "captions.csv").write_text("\n".join(["file,caption", *rows]), encoding="utf-8")
    return folder


def test_a_full_disk_names_where_it_was_writing(
    told: Told, set_of_mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))

    monkeypatch.setattr("shutil.copy2", full)
    answer = told("prepare", "folder", set_of_mine, "--name", "x", "--copy", code=ExitCode.FAILURE)
    assert f"to {Path('data', 'x', 'images')}" in answer
    assert "No space left on device" in answer
    assert not (tmp_path / "data" / "x" / "images").exists()


def test_an_image_that_may_not_be_read_is_not_called_broken(
    told: Told, set_of_mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def refused(path: Path, *arguments: object, **options: object) -> object:
        if path.name == "scene_01.jpg":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refused)
    answer = told("prepare", "folder", set_of_mine, "--name", "x", code=ExitCode.DATA)
    assert "cannot be read (Permission denied)" in answer
    assert "broken" not in answer


def test_a_folder_in_place_of_an_image_is_called_one(told: Told, tiny_run: Path, tiny_images: Path) -> None:
    workspace = ("--workspace", tiny_run.parent.parent)
    assert "is a folder" in told(*workspace, "retrieve", "--image", tiny_images, code=ExitCode.DATA)
    assert "Is a directory" in told(*workspace, "explain", tiny_images, "a square", code=ExitCode.DATA)


def test_a_log_that_is_not_there_is_not_called_binary(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"log\.jsonl is not there"):
        list(read_journal(tmp_path / "log.jsonl"))
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        list(read_journal(tmp_path / "log.jsonl"))


SPOILT = """
import sys
from pathlib import Path
from cmpagl_core.errors import DataError
from cmpagl_core.imagery.images import open_image
for path in sorted(Path().glob("*.tif")):
    try:
        open_image(path)
    except DataError:
        print("refused")
"""


def test_decoders_write_nothing_of_their_own(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg"):
        path = tmp_path / f"{compression}.tif"
        Image.fromarray(noise).save(path, compression=compression)
        content = bytearray(path.read_bytes())
        content[1_000:20_000:97] = bytes(255 - value for value in content[1_000:20_000:97])
        path.write_bytes(bytes(content))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", SPOILT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "refused" in done.stdout
    assert done.stderr == ""


def test_captions_that_are_not_counted_are_not_said_to_be_none() -> None:
    uncounted = Overlap("ucm", 3, None, 10, 300).sentences("model")[0]
    assert uncounted == "trained on ucm, which shares 3 of 10 images with the test set"
    assert "2 of 300 captions" in Overlap("rsicd", 0, 2, 10, 300).sentences("model")[0]


@pytest.mark.parametrize("row", ['a.jpg,"never closed', 'a.jpg,"closed" and on'])
def test_a_wrong_quote_is_named_with_the_line_that_it_stands_in(row: str, told: Told, set_of_mine: Path) -> None:
    table = set_of_mine / "captions.csv"
    lines = table.read_text(encoding="utf-8").split("\n")
    table.write_text("\n".join([*lines[:3], row, *lines[3:]]), encoding="utf-8")
    answer = told("prepare", "folder", set_of_mine, "--name", "x", code=ExitCode.DATA)
    assert f"{table}:4: " in answer


@pytest.fixture
def unlistable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders called `secret` may not be listed, whoever asks (root may list all)."""
    real = os.scandir

    def refused(path: object = ".") -> object:
        if Path(str(path)).name == "secret":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr("os.scandir", refused)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
@pytest.mark.usefixtures("unlistable")
def test_what_cannot_be_listed_is_left_out_of_an_index_and_named(
    told: Told, tiny_run: Path, set_of_mine: Path, tmp_path: Path
) -> None:
    (set_of_mine / "secret").mkdir()
    for name in (b"caf\xe9.jpg", b"d\xe9p\xf4t"):
        place = os.path.join(os.fsencode(set_of_mine), name)  # noqa: PTH118
        if name.endswith(b".jpg"):
            shutil.copy(next(set_of_mine.rglob("*.jpg")), place)
        else:
            os.mkdir(place)  # noqa: PTH102
    listing = list_images(set_of_mine)
    assert len(listing.images) == 12
    assert len(listing.left_out) == 3
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    for _ in range(2):  # the second time nothing is new
        answer = told("index", set_of_mine, "--run", "tiny", "--name", "mine", code=ExitCode.DONE)
        assert "secret cannot be listed (Permission denied)" in answer
        assert "caf\\xe9.jpg is not valid UTF-8" in answer
        assert "d\\xe9p\\xf4t is not valid UTF-8" in answer
    assert "so that no image is missed" in told("prepare", "folder", set_of_mine, "--name", "x", code=ExitCode.DATA)
