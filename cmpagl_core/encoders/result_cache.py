"""Results of encoding on disk, so that a split is encoded once for all commands (ours).

A file in `cache/features/` holds one array: features of images or captions, or match probabilities of pairs. It is
named by a hash of everything that the array depends on, and records the hash of the array. A file that is broken, or
of something else, is computed again. The least recently used files are removed when all exceed a gigabyte.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.encoders.tensor_file import open_tensor_file, write_tensor_file
from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.files import canonical_json, sha256_text
from cmpagl_core.locks import hold, sweep_lock
from cmpagl_core.progress import Progress

RESULT_FORMAT = 1
MOST_BYTES = 1 << 30

_KIND = "cached_result"
_VALUES = "values"

Values = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Result:
    """What an array depends on, as JSON; its shape; whether its values are possible; and how to compute it."""

    about: Mapping[str, Any]
    shape: tuple[int, ...]
    is_valid: Callable[[Values], bool]
    compute: Callable[[], Values]

    @property
    def key(self) -> str:
        """Hash of everything that the array depends on."""
        return sha256_text(canonical_json({"format": RESULT_FORMAT, **self.about}))


@dataclass(frozen=True)
class ResultCache:
    """The results under `root`, at most `most_bytes` of them."""

    root: Path
    progress: Progress
    most_bytes: int = MOST_BYTES

    def __contains__(self, result: Result) -> bool:
        return self._path(result).is_file()

    def get(self, result: Result) -> Values:
        """The array, read-only if it was cached; if two processes need it, one computes it while the other waits.

        Raises what computing it raises. If nothing can be written, a message says so.
        """
        path = self._path(result)
        with ExitStack() as lock:
            found = self._read(path, result)
            if found is not None:
                sweep_lock(path)
            else:
                try:
                    lock.enter_context(hold(path, self.progress.say))
                except CmpaglError as error:
                    self.progress.say(f"not cached: {error}")
                    return result.compute()
                found = self._read(path, result)
            if found is None:
                found = result.compute()
                self._write(path, result, found)
            return found

    def _path(self, result: Result) -> Path:
        return self.root / f"{result.key[:24]}.safetensors"

    def _read(self, path: Path, result: Result) -> Values | None:
        """The array in a file; None, with a message unless there is no file, if it is not this result."""
        if not path.is_file():
            return None
        try:
            file = open_tensor_file(path)
            values: Values = file.array(_VALUES, "<f4", result.shape)
            if file.about != _record(result.key, values) or not result.is_valid(values):
                raise DataError(f"{path} is broken or of something else")
        except DataError as error:
            self.progress.say(f"computed again: {error}")
            return None
        with suppress(OSError):
            os.utime(path)  # used now
        return values

    def _write(self, path: Path, result: Result, values: Values) -> None:
        try:
            write_tensor_file(path, {_VALUES: values}, _record(result.key, values))
        except CmpaglError as error:
            self.progress.say(f"not cached: {error}")
        self._remove_oldest(path)

    def _remove_oldest(self, newest: Path) -> None:
        used = []
        for path in self.root.glob("*.safetensors"):
            with suppress(OSError):  # removed by another process
                state = path.stat()
                used.append((state.st_mtime_ns, path, state.st_size))
        total = sum(size for _, _, size in used)
        for _, path, size in sorted(used):
            if total <= self.most_bytes:
                break
            if path != newest:
                with suppress(OSError):
                    path.unlink()
                total -= size


def _record(key: str, values: Values) -> dict[str, str]:
    digest = hashlib.sha256(np.ascontiguousarray(values).view(np.uint8).data).hexdigest()
    return {"kind": _KIND, "key": key, "sha256": digest}
