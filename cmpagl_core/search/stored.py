"""Stamps and windows of images as arrays, as stored in indexes and their parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.encoders.tensor_file import Array, TensorFile
from cmpagl_core.files import FileStamp
from cmpagl_core.imagery.image_ref import Window


@dataclass(frozen=True, eq=False)
class FileStamps:
    """Stamps of N files as arrays: size in bytes [N], mtime in ns [N], SHA-256 [N, 32]."""

    sizes: NDArray[np.int64]
    mtimes_ns: NDArray[np.int64]
    sha256: NDArray[np.uint8]

    @classmethod
    def of(cls, stamps: Sequence[FileStamp]) -> FileStamps:
        """Some stamps, to be stored."""
        content = b"".join(bytes.fromhex(stamp.sha256) for stamp in stamps)
        return cls(
            np.array([stamp.size for stamp in stamps], dtype=np.int64),
            np.array([stamp.mtime_ns for stamp in stamps], dtype=np.int64),
            np.frombuffer(content, dtype=np.uint8).reshape(-1, 32),
        )

    @classmethod
    def read(cls, file: TensorFile, count: int) -> FileStamps:
        """The stamps of `count` files. Raises DataError if the file does not contain them."""
        return cls(
            sizes=file.array("sizes", "<i8", (count,)),
            mtimes_ns=file.array("mtimes_ns", "<i8", (count,)),
            sha256=file.array("sha256", "|u1", (count, 32)),
        )

    def arrays(self) -> dict[str, Array]:
        """What to write."""
        return {"sizes": self.sizes, "mtimes_ns": self.mtimes_ns, "sha256": self.sha256}

    def __iter__(self) -> Iterator[FileStamp]:
        content = self.sha256.tobytes().hex()
        for row, (size, mtime_ns) in enumerate(zip(self.sizes.tolist(), self.mtimes_ns.tolist(), strict=True)):
            yield FileStamp(size, mtime_ns, content[64 * row : 64 * row + 64])


def stored_windows(windows: Sequence[Window | None]) -> NDArray[np.int64] | None:
    """Windows as an array, [N, 4]; None if no image has one."""
    if all(window is None for window in windows):
        return None
    return np.array([(0, 0, 0, 0) if window is None else astuple(window) for window in windows], dtype=np.int64)


def read_windows(file: TensorFile, count: int) -> NDArray[np.int64] | None:
    """The windows of `count` images. Raises DataError if they are not as written by `stored_windows`."""
    return file.array("windows", "<i8", (count, 4)) if "windows" in file.arrays else None


def window_of(windows: NDArray[np.int64] | None, row: int) -> Window | None:
    """One of them."""
    return None if windows is None or not windows[row, 2] else Window(*windows[row].tolist())
