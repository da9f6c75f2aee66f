"""Unpack untrusted archives safely: nothing outside the folder, no links, no devices, bounded size and count."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from cmpagl_core.errors import DataError
from cmpagl_core.imagery.images import IMAGE_SUFFIXES
from cmpagl_core.progress import Advance, Progress

_DECOMPRESSORS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".tar": lambda packed: packed,
    **dict.fromkeys((".tar.gz", ".tgz"), lambda packed: gzip.GzipFile(fileobj=packed)),
    **dict.fromkeys((".tar.bz2", ".tbz2"), bz2.BZ2File),
    **dict.fromkeys((".tar.xz", ".txz"), lzma.LZMAFile),
}
_FOREIGN = (".rar", ".7z")
_WANTED = IMAGE_SUFFIXES | {".json", ".csv", ".tsv", ".txt"}
_CHUNK_BYTES = 1 << 20
_LONGEST_READ_BYTES = 16 << 20  # what tarfile may ask for at once: our chunks, or an extended header
_LONGEST_NAME_BYTES = 255
_DEEPEST = 50  # nested folders
# What zipfile and tarfile raise on broken archives.
_UNREADABLE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError)
_UNREADABLE_TOO = (ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError, TypeError)


@dataclass(frozen=True)
class Bounds:
    """Limits on an archive's content; images are already compressed, so a high ratio means an attack."""

    files: int = 1_000_000
    unpacked_bytes: int = 256 << 30
    ratio: int = 50
    always_bytes: int = 1 << 30  # allowed whatever the ratio


def is_archive(path: Path) -> bool:
    """Whether a file has the name of an archive, of a supported kind or not."""
    return path.is_file() and path.name.lower().endswith((".zip", *_DECOMPRESSORS, *_FOREIGN))


def unpack(archive: Path, folder: Path, progress: Progress, bounds: Bounds | None = None) -> None:
    """Unpack the images and annotation files of a zip or tar archive into `folder`, which exists.

    Raises DataError for a broken archive, one that reaches outside the folder, contains links or devices, or exceeds
    the bounds; OSError if writing fails. Files written by then remain: call it inside `stage_folder`.
    """
    if archive.name.lower().endswith(_FOREIGN):
        raise DataError(f"{archive} is not a kind of archive that cmpagl reads", hint="unpack it and give the folder")
    budget = Budget(str(archive), archive.stat().st_size, folder, bounds)
    unpack_members = _unpack_zip if archive.name.lower().endswith(".zip") else _unpack_tar
    with progress.task(f"unpacking {archive.name}", archive.stat().st_size, "B") as advance:
        unpack_members(archive, folder, budget, advance)


class Budget:
    """What may still be unpacked from an archive, and the wording of refusals."""

    def __init__(self, archive: str, size: int, folder: Path, bounds: Bounds | None = None) -> None:
        bounds = bounds or Bounds()
        by_ratio = max(bounds.always_bytes, bounds.ratio * size)
        self.archive = archive
        self._allowance = min(bounds.unpacked_bytes, by_ratio, shutil.disk_usage(folder).free)
        self._bytes_left = self._allowance
        self._files_left = bounds.files

    def count_file(self) -> None:
        self._files_left -= 1
        if self._files_left < 0:
            raise self.refuse("contains too many files")

    def spend(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise self.refuse(
                f"unpacks to more than the {self._allowance:,} bytes allowed for such an archive and disk"
            )

    def refuse(self, why: str) -> DataError:
        return DataError(f"{self.archive} {why}", hint="nothing was unpacked; if you trust it, unpack it yourself")

    @contextmanager
    def reading(self) -> Iterator[None]:
        try:
            yield
        except (*_UNREADABLE, *_UNREADABLE_TOO) as error:
            reason = " ".join(str(error).split())[:200].replace("unexpected end of data", "it ends too early")
            reason = reason or type(error).__name__
            raise DataError(f"{self.archive} is a broken archive ({reason})", hint="download it again") from error


class _BoundedStream:
    """An uncompressed tar stream that counts bytes read and skipped, so that no header or hole can be endless."""

    def __init__(self, plain: Any, budget: Budget) -> None:
        self._plain = plain
        self._budget = budget
        self._last = b""

    @property
    def at_end(self) -> bool:
        """Whether the last block read is the zero block that ends a tar; tarfile mistakes a broken header for it."""
        return len(self._last) == tarfile.BLOCKSIZE and not any(self._last)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_READ_BYTES:
            raise self._budget.refuse("has a header that is too long")
        found = cast(bytes, self._plain.read(size))
        self._budget.spend(len(found))
        self._last = found
        return found

    def seek(self, position: int) -> int:
        self._budget.spend(max(0, position - self._plain.tell()))
        return int(self._plain.seek(position))

    def tell(self) -> int:
        return int(self._plain.tell())


def _unpack_zip(archive: Path, folder: Path, budget: Budget, advance: Advance) -> None:
    with budget.reading():
        opened = zipfile.ZipFile(archive)
    with opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            budget.count_file()
            path = place_member(info.filename, folder, budget)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise budget.refuse(f"contains a link or device, {info.filename[:100]!r}")
            if path is not None and not info.is_dir():
                if info.flag_bits & 1:
                    raise budget.refuse("is encrypted")
                with budget.reading():
                    stream = opened.open(info)
                with stream:
                    write_member(stream, path, budget, spend=True)
            advance(info.compress_size)


def _unpack_tar(archive: Path, folder: Path, budget: Budget, advance: Advance) -> None:
    with archive.open("rb") as packed:
        seen = 0
        for name, stream in read_tar(packed, tar_suffix(archive.name) or ".tar", budget):
            path = place_member(name, folder, budget)
            if path is not None:
                write_member(stream, path, budget)
            advance(packed.tell() - seen)
            seen = packed.tell()


def tar_suffix(name: str) -> str | None:
    """The ending of a tar archive's name; None for another file."""
    return next((suffix for suffix in _DECOMPRESSORS if name.lower().endswith(suffix)), None)


def read_tar(packed: IO[bytes], suffix: str, budget: Budget) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file of a tar archive, in order; the content is to be read before the next.

    All that is read or skipped is spent from the budget. Raises DataError for a broken archive, one that contains links
    or devices, or a name that reaches outside.
    """
    with budget.reading():
        plain = _BoundedStream(_DECOMPRESSORS[suffix](packed), budget)
        opened = tarfile.open(fileobj=cast(IO[bytes], plain), mode="r:")  # noqa: SIM115  # owns nothing to close
    while True:
        with budget.reading():
            member = opened.next()
        if member is None:
            if not plain.at_end:
                raise budget.refuse("is truncated, or one of its headers is broken")
            return
        opened.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has read
        budget.count_file()
        _parts(member.name, budget)
        if not (member.isreg() or member.isdir()):
            raise budget.refuse(f"contains a link or device, {member.name[:100]!r}")
        if member.issparse():  # a few bytes would unpack to any size
            raise budget.refuse(f"contains a sparse file, {member.name[:100]!r}")
        if member.isreg():
            with budget.reading():
                stream = opened.extractfile(member)
            if stream is not None:
                yield member.name, stream


def place_member(
    name: str, folder: Path, budget: Budget, wanted: frozenset[str] | None = frozenset(_WANTED)
) -> Path | None:
    """Where a member is unpacked to; None if it is hidden or, of the endings `wanted`, has none.

    Raises DataError for a name that reaches outside.
    """
    parts = _parts(name, budget)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    if not parts or hidden or (wanted is not None and Path(parts[-1]).suffix.lower() not in wanted):
        return None
    return folder.joinpath(*parts)


def _parts(name: str, budget: Budget) -> list[str]:
    readable = name.encode("utf-8", "replace").decode("utf-8").replace("\\", "/")
    parts = [part for part in readable.split("/") if part not in ("", ".")]
    if readable.startswith("/") or re.match(r"[A-Za-z]:", readable) or ".." in parts or "\0" in readable:
        raise budget.refuse(f"contains a file that would be written outside its folder, {name[:100]!r}")
    if any(len(part.encode()) > _LONGEST_NAME_BYTES for part in parts):
        raise budget.refuse(f"contains a file name that is too long, {name[:100]!r}")
    if len(parts) > _DEEPEST:
        raise budget.refuse(f"nests more than {_DEEPEST} folders, {name[:100]!r}")
    return parts


def write_member(stream: IO[bytes], path: Path, budget: Budget, head: bytes = b"", spend: bool = False) -> None:
    """Write a member to a file that must not exist. head: what was read of it. spend: the stream does not count."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = path.open("xb")
    except (FileExistsError, NotADirectoryError) as error:
        raise budget.refuse(f"contains {path.name[:100]!r} twice in one folder") from error
    with target:
        target.write(head)
        while True:
            with budget.reading():
                chunk = stream.read(_CHUNK_BYTES)
            if not chunk:
                return
            if spend:
                budget.spend(len(chunk))
            target.write(chunk)
