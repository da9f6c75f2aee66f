"""Archives of strangers: the honest ones unpack, the others are refused and leave nothing outside."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from cmpagl_core.datasets.archives import Bounds, is_archive, unpack
from cmpagl_core.datasets.staging import stage_folder
from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.progress import Silent

FILES = {"set/images/a.jpg": b"image", "set/dataset.json": b"{}"}
TARS = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def zip_of(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def tar_of(path: Path, files: Mapping[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    suffix = next(suffix for suffix in sorted(TARS, key=len, reverse=True) if path.name.endswith(suffix))
    with tarfile.open(path, TARS[suffix]) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))
    return path


def unpacked(archive: Path, bounds: Bounds | None = None) -> dict[str, bytes]:
    folder = archive.parent / "out"
    folder.mkdir(exist_ok=True)
    unpack(archive, folder, Silent(), bounds)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", TARS)
def test_every_kind_of_tar_unpacks(tmp_path: Path, suffix: str) -> None:
    assert unpacked(tar_of(tmp_path / f"a{suffix}", FILES)) == FILES


def test_zip_unpacks_and_leaves_out_what_nobody_needs(tmp_path: Path) -> None:
    clutter = {"set/run.exe": b"MZ", "__MACOSX/a.jpg": b"x", "set/.hidden.jpg": b"x", "set/._a.jpg": b"x"}
    assert unpacked(zip_of(tmp_path / "a.zip", {**FILES, **clutter})) == FILES


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "a/../../evil.jpg", "/tmp/evil.jpg", "C:/evil.jpg", "..\\evil.jpg", "..", "a/../b.exe"]
)
@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_a_name_that_leads_outside_is_refused(tmp_path: Path, name: str, suffix: str) -> None:
    make = zip_of if suffix == ".zip" else tar_of
    with pytest.raises(DataError, match="would be written outside its folder"):
        unpacked(make(tmp_path / f"a{suffix}", {name: b"evil"}))
    assert not list(tmp_path.glob("**/evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(DataError, match=r"contains a link or device, 'a\.jpg'"):
        unpacked(tar_of(tmp_path / "a.tar", {"a.jpg": b""}, kind))
    assert not (tmp_path / "out/a.jpg").exists()


def test_links_in_zip_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("a.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="contains a link or device"):
        unpacked(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.xz"])
def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path, name: str) -> None:
    make = zip_of if name.endswith(".zip") else tar_of
    archive = make(tmp_path / name, {f"{number}.jpg": bytes(300_000) for number in range(10)})
    with pytest.raises(DataError, match=r"unpacks to more than the [\d,]+ bytes"):
        unpacked(archive, Bounds(always_bytes=1000))


def test_a_bomb_behind_a_skipped_file_is_refused(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar.gz", {"skipped.exe": bytes(3_000_000), "a.jpg": b"x"})
    with pytest.raises(DataError, match="unpacks to more than"):
        unpacked(archive, Bounds(always_bytes=1000))


def test_the_bound_on_bytes_holds_whatever_the_ratio(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(50_000)
    with pytest.raises(DataError, match=r"more than the 20,000 bytes"):
        unpacked(zip_of(tmp_path / "a.zip", {"a.jpg": noise}), Bounds(unpacked_bytes=20_000))


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains too many files"):
        unpacked(zip_of(tmp_path / "a.zip", {f"{number}.jpg": b"" for number in range(20)}), Bounds(files=10))


def test_an_endless_header_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    (tmp_path / "a.tar").write_bytes(header.tobuf() + bytes(10_000))
    with pytest.raises(DataError, match="has a header that is too long"):
        unpacked(tmp_path / "a.tar")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_broken(tmp_path: Path, name: str, kept: float) -> None:
    noise = np.random.default_rng(0).bytes(100_000)
    archive = (zip_of if name.endswith(".zip") else tar_of)(tmp_path / name, {"a.jpg": noise})
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match="is a broken archive"):
        unpacked(archive)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz", "a.tar.bz2", "a.txz"])
def test_a_file_that_is_no_archive_is_broken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"hello " * 1000)
    with pytest.raises(DataError, match="is a broken archive"):
        unpacked(tmp_path / name)


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    with pytest.raises(DataError, match=r"contains 'a\.jpg' twice"):
        unpacked(tmp_path / "a.tar")


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="file name that is too long"):
        unpacked(zip_of(tmp_path / "a.zip", {f"{'x' * 300}.jpg": b""}))


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    content = bytearray(zip_of(tmp_path / "a.zip", {"a.jpg": b"x"}).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match="is encrypted"):
        unpacked(tmp_path / "a.zip")


def test_a_foreign_archive_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.rar").touch()
    assert is_archive(tmp_path / "a.rar")
    with pytest.raises(DataError, match="unpack it and give the folder"):
        unpacked(tmp_path / "a.rar")


def test_a_staged_folder_appears_only_when_complete(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise DataError("broken")

    target = tmp_path / "target"
    stage_folder(target, {"of": 1}, lambda folder: (folder / "old").touch())
    with pytest.raises(DataError, match="broken"):
        stage_folder(target, {"of": 2}, fails)
    assert (target / "old").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_staged_folder_is_put_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, target = Path.rename, tmp_path / "target"

    def fails_for_the_new_one(self: Path, to: Path) -> Path:
        if to == target and self.parent == tmp_path:
            raise OSError(28, "No space left on device")
        return rename(self, to)

    stage_folder(target, {"of": 1}, lambda folder: (folder / "old").touch())
    monkeypatch.setattr(Path, "rename", fails_for_the_new_one)
    with pytest.raises(CmpaglError, match="No space left on device"):
        stage_folder(target, {"of": 2}, lambda folder: (folder / "new").touch())
    assert (target / "old").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_staged_folder_is_filled_once_for_one_stamp(tmp_path: Path) -> None:
    filled: list[Path] = []
    for of in (1, 1, 2):
        stage_folder(tmp_path / "target", {"of": of}, filled.append)
    assert len(filled) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_folder_of_the_users_own_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(DataError, match="was not created by cmpagl"):
        stage_folder(tmp_path / "target", {}, lambda folder: None)


def test_a_disk_that_refuses_leaves_nothing(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(CmpaglError, match=r"No space left on device.*nothing was left half written"):
        stage_folder(tmp_path / "target", {}, full)
    assert not list(tmp_path.iterdir())
