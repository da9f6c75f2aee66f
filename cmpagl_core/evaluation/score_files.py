"""Score matrices as `.npy` files, each with a JSON file beside it that records its split (ours)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.errors import DataError, MismatchError, check_format
from cmpagl_core.files import atomic_path, read_json, sha256_file, write_json
from cmpagl_core.ranking.scores import ScoreMatrix

SCORES_FORMAT = 1

_ARCHIVE = b"PK"
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class ScoresInfo:
    """Split and model of a score matrix, images x captions. Hashes are hex digests of SHA-256."""

    model: str
    model_sha256: str
    dataset: str
    manifest_sha256: str
    split: str
    split_sha256: str
    base: str  # which scores of the model these are: cosine or itm
    overlap: str = ""  # as in FeatureInfo
    scores_sha256: str = ""  # of the .npy file
    format_version: int = SCORES_FORMAT


def save_scores(path: Path, scores: ScoreMatrix, info: ScoresInfo) -> ScoresInfo:
    """Write scores as float32, tile by tile, then their description beside them (`NAME.npy.json`).

    Returns the description. Raises CmpaglError if writing fails.
    """
    rows, cols = scores.shape
    with atomic_path(path) as partial:
        stored = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(rows, cols))
        for start in range(0, rows, _ROWS_AT_ONCE):
            part = slice(start, min(start + _ROWS_AT_ONCE, rows))
            stored[part] = scores.block(part, slice(0, cols))
        stored.flush()
        del stored
    known = ScoresInfo(**{**asdict(info), "scores_sha256": sha256_file(path)})
    write_json(info_path(path), asdict(known))
    return known


def info_path(scores: Path) -> Path:
    """Path of a score file's description."""
    return scores.with_name(f"{scores.name}.json")


def read_scores_info(scores: Path) -> ScoresInfo | None:
    """The description of a score file; None if there is none.

    Raises DataError for a broken description, MismatchError for that of another file.
    """
    path = info_path(scores)
    if not path.is_file():
        return None
    try:
        info = TypeAdapter(ScoresInfo).validate_python(read_json(path))
    except ValidationError as error:
        raise DataError(f"{path} does not describe {scores.name}", hint="export the scores again") from error
    check_format(path, info.format_version, SCORES_FORMAT, "export the scores again")
    if info.scores_sha256 != sha256_file(scores):
        raise MismatchError(f"{path} does not describe the present {scores.name}", hint="export both again")
    return info


def open_scores(path: Path) -> NDArray[Any]:
    """Map a `.npy` file of scores; nothing in it is ever executed. Raises DataError in one sentence."""
    hint = "save it with numpy.save as a float32 matrix of images x captions"
    try:
        with path.open("rb") as stream:
            archive = stream.read(len(_ARCHIVE)) == _ARCHIVE
        if archive:
            raise DataError(f"{path} is an archive of several arrays, not one .npy matrix", hint=hint)
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, ValueError, EOFError, OverflowError, MemoryError) as error:
        raise DataError(f"{path} is not a .npy file of plain numbers", hint=hint) from error
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise DataError(f"{path} has {array.dtype} of shape {array.shape}, not a matrix of numbers", hint=hint)
    return array


def equal_scores(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Whether two matrices have the same numbers, whatever their types."""
    if first.shape != second.shape:
        return False
    starts = range(0, len(first), _ROWS_AT_ONCE)
    return all(np.array_equal(first[row : row + _ROWS_AT_ONCE], second[row : row + _ROWS_AT_ONCE]) for row in starts)


def require_shape(scores: ScoreMatrix, split: DataSplit, name: str) -> None:
    """Raises MismatchError unless the scores are those of the split's images x captions."""
    expected = len(split), len(split.captions)
    if scores.shape != expected:
        turned = " (it looks transposed)" if scores.shape == expected[::-1] else ""
        raise MismatchError(
            f"{name} is {scores.shape[0]:,} x {scores.shape[1]:,}{turned}, but the {split.name} split of "
            f"{split.dataset} has {expected[0]:,} images x {expected[1]:,} captions",
            hint="score that split, in the order of its images.csv and captions.csv",
        )
