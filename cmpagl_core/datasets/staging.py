"""Folders that appear only when complete: unpacked archives, copied images, drawn scenes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.files import PARTIAL_SUFFIX, partial_prefix, read_json, sha256_unordered, write_json

_STAMP = ".cmpagl-stamp.json"


def stage_folder(target: Path, stamp: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
    """Fill `target` with what `fill` writes, unless it was already filled under an equal stamp.

    `fill` gets an empty folder beside the target, which replaces it when `fill` returns; if `fill` raises or the
    process is killed, the target is unchanged. The caller holds the lock of the parent folder (`locks.py`), which also
    removes what killed processes left. Raises DataError if cmpagl did not create the target, CmpaglError if writing
    fails.
    """
    if is_staged(target, stamp):
        return
    if target.exists() and not (target / _STAMP).is_file():
        raise DataError(f"{target} was not created by cmpagl and would be replaced", hint="move it away, or use --name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _beside(target)
    except OSError as error:
        raise CmpaglError(f"cannot write {target} ({error.strerror or error})") from error
    try:
        fill(partial)
        write_json(partial / _STAMP, {"stamp": dict(stamp), "files": _files_sha256(partial)})
        _swap(partial, target)
    except OSError as error:
        raise CmpaglError(
            f"cannot write {error.filename or target} ({error.strerror or error})",
            hint="nothing was left half written; free disk space or choose another --workspace",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_staged(target: Path, stamp: Mapping[str, Any]) -> bool:
    """Whether the target was filled under an equal stamp, and no file was removed, added or changed since."""
    if not (target / _STAMP).is_file():
        return False
    with suppress(DataError):
        return bool(read_json(target / _STAMP) == {"stamp": dict(stamp), "files": _files_sha256(target)})
    return False


def _swap(partial: Path, target: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    partial.chmod(0o777 & ~mask)
    if not target.exists():
        partial.rename(target)
        return
    old = _beside(target)
    try:
        target.rename(old / target.name)
        try:
            partial.rename(target)
        except OSError:
            (old / target.name).rename(target)
            raise
    finally:
        if target.exists():  # else it is all that is left of it
            shutil.rmtree(old, ignore_errors=True)


def _files_sha256(folder: Path) -> str:
    """Hash of the names, sizes and times of all files but the stamp."""
    paths = (Path(place, name) for place, _, files in os.walk(folder) for name in files if name != _STAMP)
    states = ((path.relative_to(folder).as_posix(), path.lstat()) for path in paths)
    return sha256_unordered(f"{name}\t{state.st_size}\t{state.st_mtime_ns}" for name, state in states)


def _beside(target: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=partial_prefix(target), suffix=PARTIAL_SUFFIX, dir=target.parent))
