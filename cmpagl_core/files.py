"""Atomic file writing, hashes, and finding the newest artefact."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO, Any

from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.processes import own_process, tag_has_ended

PARTIAL_SUFFIX = ".partial"

_HASH_CHUNK_BYTES = 1 << 20
_NAME_SHOWN = 50  # characters of a target's name in a partial file's, whose name would otherwise be too long
_PARTIAL = re.compile(rf"\..*\.([^.]+)\.[^.]+{re.escape(PARTIAL_SUFFIX)}", re.DOTALL)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write to; it replaces the target if the block succeeds.

    A link is kept and its target is replaced; a pipe or terminal is written at the end. Raises CmpaglError, after
    removing the partial file, if writing fails (disk full, read-only) or if the target is a disk, folder or socket.
    """
    if _is_regular(target):
        with _replaced(Path(os.path.realpath(target))) as partial:
            yield partial
    else:
        with _written_through(target) as partial:
            yield partial


@contextmanager
def _replaced(target: Path) -> Iterator[Path]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(target.parent)
        handle, name = tempfile.mkstemp(prefix=partial_prefix(target), suffix=PARTIAL_SUFFIX, dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise _cannot_write(target, error) from error
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.chmod(0o666 & ~_umask())
        partial.replace(target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _written_through(target: Path) -> Iterator[Path]:
    try:
        with scratch_folder("output") as folder:
            partial = folder / target.name
            partial.touch()
            yield partial
            with partial.open("rb") as written, target.open("wb") as stream:
                shutil.copyfileobj(written, stream)
    except OSError as error:
        raise _cannot_write(target, error) from error


def _is_regular(target: Path) -> bool:
    """False for a pipe or terminal. Raises CmpaglError for what must be neither replaced nor written to."""
    try:
        kind = stat.S_IFMT(target.stat().st_mode)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise _cannot_write(target, error) from error
    if kind in (stat.S_IFDIR, stat.S_IFBLK, stat.S_IFSOCK):
        what = {stat.S_IFDIR: "folder", stat.S_IFBLK: "disk", stat.S_IFSOCK: "socket"}[kind]
        raise CmpaglError(f"cannot write {target} (it is a {what})", hint="pass a file")
    return kind == stat.S_IFREG


def partial_prefix(target: Path) -> str:
    """Name prefix of a partial file for `target`: its final name and the writing process."""
    return f"{_partials_of(target)}{own_process().tag}."


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` to write its parts to, removed in the end; `sweep_partials` removes dead processes'."""
    with tempfile.TemporaryDirectory(prefix=partial_prefix(target), suffix=PARTIAL_SUFFIX, dir=target.parent) as name:
        yield Path(name)


@contextmanager
def scratch_folder(stem: str) -> Iterator[Path]:
    """A folder in the system's place for temporary files, removed in the end, after those that dead processes left."""
    sketch = Path(tempfile.gettempdir(), f"cmpagl-{stem}")
    _sweep(sketch.parent, _partials_of(sketch))
    with partial_folder(sketch) as folder:
        yield folder


def sweep_partials(target: Path) -> None:
    """Remove partial files and folders of `target` left by dead processes of this host, in it and one level below.

    The caller must hold the lock. Partial files of other hosts are kept, since they may still be alive.
    """
    _sweep(target.parent, _partials_of(target))
    if target.is_dir():
        _sweep(target)
        for below in target.iterdir():
            if below.is_dir() and not below.is_symlink():
                _sweep(below)


@contextmanager
def atomic_file(target: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing ("w" text as UTF-8, "wb" bytes) that appears only when complete."""
    with atomic_path(target) as partial:
        options: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        with partial.open(mode, **options) as stream:
            yield stream


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_file(target) as stream:
        stream.write(text)


def write_bytes(target: Path, content: bytes) -> None:
    """Write bytes atomically."""
    with atomic_file(target, "wb") as stream:
        stream.write(content)


def write_json(target: Path, content: Any) -> None:
    """Write JSON atomically: indented, keys in the given order, with a trailing newline."""
    write_text(target, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, parse: Callable[[str], Any] | None = None) -> Any:
    """Read a JSON file. Raises DataError naming file and line if it is missing or not JSON.

    parse: `json.loads` for foreign files, in which unused numbers may be NaN; `parse_json` if None.
    """
    try:
        return (parse or parse_json)(path.read_text(encoding="utf-8-sig"))  # with or without a byte order mark
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text") from error
    except ValueError as error:  # also Python's limit of 4,300 digits for integers
        raise DataError(f"{path}: not valid JSON ({error})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply to have been written by cmpagl") from error


def parse_json(text: str) -> Any:
    """Strict JSON with finite numbers. Raises ValueError or RecursionError."""
    return json.loads(text, parse_constant=_not_finite, parse_float=_finite)


def canonical_json(content: Any) -> str:
    """Canonical JSON for hashing: sorted keys, no spaces."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in chunks. Raises OSError, which names the file also when a read fails."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        error.filename = str(path)
        raise
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Hex digest of a text's UTF-8 bytes (with lone surrogates, so that no input fails)."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_unordered(items: Iterable[str]) -> str:
    """Hex digest of a multiset of texts, independent of their order."""
    digest = hashlib.sha256()
    for item in sorted(sha256_text(item) for item in items):
        digest.update(item.encode("ascii"))
    return digest.hexdigest()


@dataclass(frozen=True)
class FileStamp:
    """Identity of a file as written or read: size in bytes, mtime in ns, hex SHA-256 of its content."""

    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """The stamp of an existing file. Raises OSError."""
        state = path.stat()  # before the content, so that a file that changes meanwhile does not match its stamp
        return cls(state.st_size, state.st_mtime_ns, sha256_file(path))

    def fits(self, path: Path) -> bool:
        """Whether a file matches: by size and time, or by content if only the time differs. Raises OSError."""
        state = path.stat()
        if state.st_size != self.size:
            return False
        return state.st_mtime_ns == self.mtime_ns or sha256_file(path) == self.sha256


def leads_to_file(path: Path) -> bool:
    """Whether there is such a file; not where no file can have such a name, or its folder may not be searched."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def now() -> str:
    """The current time as ISO 8601 in UTC, which sorts correctly as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def made_at(marker: Path) -> str:
    """Creation time of an artefact, from its marker file; empty if not recorded.

    Raises DataError if the file is unreadable.
    """
    content = read_json(marker)
    moment = content.get("made_at") if isinstance(content, dict) else None
    return moment if isinstance(moment, str) else ""


def newest(folder: Path, marker: str) -> Path | None:
    """The newest subfolder of `folder`, by the creation time in its file `marker`; None if there is none.

    Raises DataError if the folder or a marker is unreadable, rather than silently return an older one.
    """
    try:
        os.listdir(folder)  # noqa: PTH208  # glob takes a folder that may not be read for an empty one
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror})", hint="change its permissions") from error
    found = [path for path in folder.glob(f"*/{marker}") if path.is_file()]
    if not found:
        return None
    return max(found, key=lambda path: (made_at(path), path.parent.name)).parent


def _partials_of(target: Path) -> str:
    return f".{target.name[:_NAME_SHOWN]}."


@cache
def _sweep_once(folder: Path) -> None:
    """Remove what dead processes left in a folder; once a process, since a folder may have many files."""
    _sweep(folder)


def _sweep(folder: Path, prefix: str = ".") -> None:
    try:
        left = [path for path in folder.iterdir() if path.name.startswith(prefix)]
    except OSError:
        return
    for path in left:
        found = _PARTIAL.fullmatch(path.name)
        if found is None or not tag_has_ended(found[1]):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _finite(text: str) -> float:
    return float(text) if math.isfinite(float(text)) else _not_finite(text)


def _not_finite(text: str) -> float:
    raise ValueError(f"{text[:40]} is not a finite number")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _cannot_write(target: Path, error: OSError) -> CmpaglError:
    return CmpaglError(
        f"cannot write {target} ({error.strerror or error})",
        hint="nothing was left half written; free disk space or choose another place",
    )
