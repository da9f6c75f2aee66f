"""FeatureSet: a model's features of a split's images and captions, and its file.

All models' features have this form, so evaluation and retrieval do not depend on the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.encoders.tensor_file import Array, TensorFile, TextTable, open_tensor_file, write_tensor_file
from cmpagl_core.errors import DataError, MismatchError, check_format
from cmpagl_core.locks import hold

FEATURES_FORMAT = 3
FEATURES_KIND = "feature_set"

_ROWS_AT_ONCE = 65_536
_UNIT_TOLERANCE = 1e-3
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FeatureInfo:
    """Origin of features. Hashes are hex digests of SHA-256, empty if there is nothing to hash."""

    model: str
    model_sha256: str
    dataset: str
    manifest_sha256: str
    split: str
    split_sha256: str
    preprocessing: str
    precision: str
    templates: str = ""  # wordings of the captions, as `written_templates` has them
    overlap: str = ""  # JSON of the overlap with the model's training images; see `Overlap`
    format_version: int = FEATURES_FORMAT


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of N images and M captions, each row of unit length (a split may have no captions).

    image_features: float32 [N, D]. text_features: float32 [M, D]. text_image: int64 [M], the row of the image that
    a caption belongs to. image_sha256: of the images' files, hex [N].
    Raises ValueError if the parts do not match.
    """

    image_features: NDArray[np.float32]
    text_features: NDArray[np.float32]
    text_image: NDArray[np.int64]
    image_ids: tuple[str, ...]
    image_sha256: tuple[str, ...]
    paths: tuple[str, ...]
    captions: tuple[str, ...]
    info: FeatureInfo

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem is not None:
            raise ValueError(problem)

    @property
    def dim(self) -> int:
        """D, the width of a feature."""
        return int(self.image_features.shape[1])


def save_feature_set(path: Path, features: FeatureSet) -> None:
    """Write a feature set to one safetensors file; the same features give the same bytes.

    Raises CmpaglError if writing fails, BusyError if another process is writing it; no half-written file is left, and
    what a killed process left is removed.
    """
    arrays: dict[str, Array] = {
        "image_features": features.image_features,
        "text_features": features.text_features,
        "text_image": features.text_image,
        "image_sha256": _as_bytes(features.image_sha256),
        **TextTable.of(features.image_ids).arrays("image_ids"),
        **TextTable.of(features.paths).arrays("paths"),
        **TextTable.of(features.captions).arrays("captions"),
    }
    with hold(path, instead="choose another --out"):
        write_tensor_file(path, arrays, {"kind": FEATURES_KIND, **asdict(features.info)})


def load_feature_set(path: Path) -> FeatureSet:
    """Read a feature set and check it completely.

    Raises DataError if the file is broken, not a feature set, or has features that are not finite or not of unit
    length; MismatchError if another version of cmpagl wrote it.
    """
    file = open_tensor_file(path)
    info = _read_info(file)
    image_features = file.array("image_features", "<f4", (None, None))
    count, dim = image_features.shape
    text_features = file.array("text_features", "<f4", (None, dim))
    captions = len(text_features)
    try:
        return FeatureSet(
            image_features=image_features,
            text_features=text_features,
            text_image=file.array("text_image", "<i8", (captions,)),
            image_ids=tuple(file.texts("image_ids", count)),
            image_sha256=tuple(row.tobytes().hex() for row in file.array("image_sha256", "|u1", (count, 32))),
            paths=tuple(file.texts("paths", count)),
            captions=tuple(file.texts("captions", captions)),
            info=info,
        )
    except ValueError as error:
        raise DataError(f"{path}: {error}", hint="export the features again") from error


def require_same_model(found: str, expected: str, what: str, expected_of: str) -> None:
    """Refuse to compare features of two models. Raises MismatchError naming both.

    found, expected: SHA-256 of the weights. what, expected_of: names of the two for the user.
    """
    if found != expected:
        raise MismatchError(
            f"{what} has features of another model ({found[:12] or 'unknown'}) than {expected_of} "
            f"({expected[:12] or 'unknown'})",
            hint="export or index again with that run, or pass the run of these features with --run",
        )


def unique_texts(texts: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct texts in order of first appearance, and each text's row among them [M]."""
    place: dict[str, int] = {}
    row_of = np.fromiter((place.setdefault(text, len(place)) for text in texts), dtype=np.int64, count=len(texts))
    return list(place), row_of


def is_unit_length(features: NDArray[np.float32]) -> bool:
    """True if every row is finite and of length 1 (within 0.001); reads in blocks."""
    for start in range(0, len(features), _ROWS_AT_ONCE):
        block = features[start : start + _ROWS_AT_ONCE]
        lengths = np.sqrt(np.einsum("nd,nd->n", block, block, dtype=np.float64))
        if not bool((np.abs(lengths - 1.0) <= _UNIT_TOLERANCE).all()):  # false for NaN too
            return False
    return True


def _read_info(file: TensorFile) -> FeatureInfo:
    if file.about.get("kind") != FEATURES_KIND:
        raise DataError(
            f"{file.path} is not a feature set but {file.about.get('kind') or 'something else'!r}",
            hint="write one with `cmpagl export`",
        )
    version = file.about.get("format_version")
    check_format(file.path, version, FEATURES_FORMAT, "export the features again", MismatchError)
    values: dict[str, Any] = {field.name: file.about.get(field.name) for field in fields(FeatureInfo)}
    for name, value in values.items():
        if name != "format_version" and not isinstance(value, str):
            raise DataError(f"{file.path}: {name} is {value!r}, not text", hint="export the features again")
    return FeatureInfo(**values)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _as_bytes(hashes: Sequence[str]) -> NDArray[np.uint8]:
    """Hex digests as [N, 32]."""
    return np.frombuffer(b"".join(map(bytes.fromhex, hashes)), dtype=np.uint8).reshape(-1, 32)


def _problem(features: FeatureSet) -> str | None:
    images, texts, rows = features.image_features, features.text_features, features.text_image
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1] or images.shape[1] == 0:
        return f"image_features {images.shape} and text_features {texts.shape} differ in width"
    if images.dtype != np.float32 or texts.dtype != np.float32 or rows.dtype != np.int64:
        return f"features are {images.dtype} and {texts.dtype}, rows {rows.dtype}, not float32 and int64"
    if not len(images) == len(features.image_ids) == len(features.paths) == len(features.image_sha256):
        return (
            f"{len(images)} images have {len(features.image_ids)} ids, {len(features.paths)} paths and "
            f"{len(features.image_sha256)} hashes"
        )
    if not all(_HASH.fullmatch(sha256) for sha256 in features.image_sha256):
        return "image_sha256 has an entry that is not a hash"
    if rows.shape != (len(texts),) or len(features.captions) != len(texts):
        return f"{len(texts)} text features have {len(features.captions)} captions and {len(rows)} image rows"
    if len(rows) and (rows.min() < 0 or rows.max() >= len(images)):
        return f"text_image has row {int(rows.max())} or {int(rows.min())} of {len(images)} images"
    for name, said in (("captions", features.captions), ("image_ids", features.image_ids)):
        wrong = next((row for row, text in enumerate(said) if not _is_utf8(text)), None)
        if wrong is not None:
            return f"row {wrong:,} of {name} is not UTF-8 text"
    if len(set(features.image_ids)) != len(features.image_ids):
        return "two images have the same image_id"
    for name, block in (("image_features", images), ("text_features", texts)):
        if not is_unit_length(block):
            return f"{name} has rows that are not finite or not of unit length"
    return None
