"""Safetensors files read as memory maps and written as streams, and lists of texts stored in them.

The format is that of the safetensors package; each reads what the other writes. It is implemented here so that a
gallery of a million images is opened without being read, written without a copy, and byte-identical each time.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.errors import DataError
from cmpagl_core.files import atomic_file, canonical_json

Array = NDArray[Any]

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "|i1", "U8": "|u1"}
_NAMES = {np.dtype(spelling): name for name, spelling in _DTYPES.items()}
_MAX_HEADER_BYTES = 16 << 20
_ALIGNMENT = 64
_ABOUT = "cmpagl"


@dataclass(frozen=True)
class TensorFile:
    """The arrays of one file, memory-mapped and read-only, and its metadata."""

    path: Path
    arrays: dict[str, Array]
    about: dict[str, Any]

    def array(self, name: str, dtype: str, shape: tuple[int | None, ...]) -> Array:
        """One array by name. None in `shape` matches any length. Raises DataError if it is missing or different."""
        if name not in self.arrays:
            raise DataError(f"{self.path} has no tensor {name!r}", hint=_not_ours(self.path))
        array = self.arrays[name]
        fits = array.ndim == len(shape) and all(
            want is None or want == have for want, have in zip(shape, array.shape, strict=True)
        )
        if array.dtype != np.dtype(dtype) or not fits:
            wanted = ", ".join("any" if length is None else f"{length:,}" for length in shape)
            raise DataError(
                f"{self.path}: tensor {name!r} is {array.dtype} of shape {array.shape}, not {dtype} of ({wanted})",
                hint=_not_ours(self.path),
            )
        return array

    def texts(self, name: str, count: int | None = None) -> TextTable:
        """A list of texts by name. Raises DataError if it is missing, broken or has another length than `count`."""
        length = None if count is None else count + 1
        data = self.array(f"{name}.bytes", "u1", (None,))
        offsets = self.array(f"{name}.offsets", "<i8", (length,))
        try:
            return TextTable(data, offsets)
        except ValueError as error:
            raise DataError(f"{self.path}: {name}: {error}", hint=_not_ours(self.path)) from error


@dataclass(frozen=True, eq=False)
class TextTable(Sequence[str]):
    """Texts as UTF-8 bytes [total] with offsets [N + 1]; each is decoded only when it is asked for.

    File names that are no valid UTF-8 survive (surrogateescape, as Python itself reads them).
    Raises ValueError when the offsets do not cut the bytes into N pieces.
    """

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        offsets = self.offsets
        if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(self.data) or bool((np.diff(offsets) < 0).any()):
            raise ValueError("the offsets do not fit the bytes")

    @classmethod
    def of(cls, texts: Iterable[str]) -> TextTable:
        """The table of some texts, in their order."""
        pieces = [_to_bytes(text) for text in texts]
        offsets = np.zeros(len(pieces) + 1, dtype=np.int64)
        np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
        return cls(np.frombuffer(b"".join(pieces), dtype=np.uint8), offsets)

    def arrays(self, name: str) -> dict[str, Array]:
        """The two arrays to write under `name`."""
        return {f"{name}.bytes": self.data, f"{name}.offsets": self.offsets}

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> tuple[str, ...]: ...

    def __getitem__(self, row: int | slice) -> str | tuple[str, ...]:
        if isinstance(row, slice):
            return tuple(self[one] for one in range(*row.indices(len(self))))
        place = row + len(self) if row < 0 else row
        if not 0 <= place < len(self):
            raise IndexError(f"row {row} of {len(self)} texts")
        return self.data[self.offsets[place] : self.offsets[place + 1]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))


def write_tensor_file(path: Path, arrays: Mapping[str, Array], about: Mapping[str, Any]) -> None:
    """Write arrays and one JSON object about them, atomically. Equal content gives equal bytes.

    Large elements come first, as the safetensors package writes them too: a table of texts has any number of bytes, and
    behind it numbers would not be aligned in memory, where a product with them takes a hundred times as long.
    """
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    stored = {name: np.ascontiguousarray(arrays[name]) for name in order}
    header: dict[str, Any] = {"__metadata__": {_ABOUT: canonical_json(about)}}
    end = 0
    for name, array in stored.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with atomic_file(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for array in stored.values():
            stream.write(array.reshape(-1).view(np.uint8).data)


def open_tensor_file(path: Path) -> TensorFile:
    """Map a safetensors file. Raises DataError if it is missing, invalid, truncated, or not written by cmpagl."""
    try:
        size = path.stat().st_size
        raw: Array = np.memmap(path, dtype=np.uint8, mode="r") if size else np.empty(0, dtype=np.uint8)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    try:
        header, start = _read_header(raw)
        about = json.loads(header.pop("__metadata__", {}).get(_ABOUT, "null"))
        arrays = {name: _map_array(raw[start:], name, entry) for name, entry in header.items()}
        _check_no_holes(header, len(raw) - start)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is not a valid safetensors file ({_reason(error)})") from error
    if not isinstance(about, dict):
        raise DataError(f"{path} was not written by cmpagl", hint=_not_ours(path))
    return TensorFile(path, arrays, about)


def _read_header(raw: Array) -> tuple[dict[str, Any], int]:
    if len(raw) < 8:
        raise ValueError("it is too short")
    (length,) = struct.unpack("<Q", raw[:8].tobytes())
    if length > min(_MAX_HEADER_BYTES, len(raw) - 8):
        raise ValueError("its header is longer than the file or too long")
    header = json.loads(raw[8 : 8 + length].tobytes().decode("utf-8"), object_pairs_hook=_distinct)
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    return header, 8 + length


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header has a duplicate key")
    return found


def _map_array(data: Array, name: str, entry: Any) -> Array:
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _DTYPES:
        raise ValueError(f"tensor {name!r} is of type {dtype!r}")
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)) or stop > len(data):
        raise ValueError(f"tensor {name!r} is outside the file")
    kind = np.dtype(_DTYPES[dtype])
    count = 1
    for length in shape:  # Python's own integers: no overflow
        count *= length
    if start > stop or count * kind.itemsize != stop - start:
        raise ValueError(f"tensor {name!r} has a number of bytes that does not match its shape")
    return data[start:stop].view(kind).reshape(shape)


def _check_no_holes(header: dict[str, Any], size: int) -> None:
    """Check that every byte belongs to exactly one tensor: nothing hidden, shared or truncated."""
    reached = 0
    for start, stop in sorted(tuple(entry["data_offsets"]) for entry in header.values()):
        if start != reached:
            raise ValueError("its tensors overlap or leave holes")
        reached = stop
    if reached != size:
        raise ValueError("it has more bytes than its header declares")


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError | json.JSONDecodeError):
        return "its header is not JSON"
    return str(error) if type(error) is ValueError else "its header is broken"


def _to_bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that encodes no byte
        return text.encode("utf-8", "replace")


def _not_ours(path: Path) -> str:
    return f"was {path.name} written by another program or version?"
