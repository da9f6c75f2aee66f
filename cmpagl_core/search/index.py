"""GalleryIndex: the pictures that can be searched, with their features and captions, as a folder.

`features.safetensors` holds everything that a search reads and is mapped, not loaded; `text_tower.safetensors` holds
the text half of the model, so that a query needs no torch; `index.json`, written last, says where all comes from.
Opening an index needs NumPy alone; `indexing.py` makes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.encoders.feature_set import FeatureSet, unique_texts
from cmpagl_core.encoders.tensor_file import Array, TensorFile, TextTable, open_tensor_file, write_tensor_file
from cmpagl_core.errors import DataError, MismatchError
from cmpagl_core.files import read_json, write_json

INDEX_FORMAT = 1
INDEX_KIND = "gallery_index"
INFO_FILE = "index.json"
FEATURES_FILE = "features.safetensors"
TOWER_FILE = "text_tower.safetensors"

_AGAIN = "make it again with `cmpagl index`"


@dataclass(frozen=True)
class IndexInfo:
    """Where a gallery comes from. Hashes are hex digests of SHA-256.

    source: the folder of a "folder" gallery, the root of a "dataset" one, the file of a "features" one.
    """

    name: str
    kind: Literal["folder", "dataset", "features"]
    source: str
    dataset: str
    manifest_sha256: str
    model: str
    run: str
    model_sha256: str
    preprocessing: str
    precision: str
    format_version: int = INDEX_FORMAT


@dataclass(frozen=True, eq=False)
class Fingerprints:
    """What tells that a picture has not changed: size in bytes [N], mtime in ns [N], SHA-256 [N, 32]."""

    sizes: NDArray[np.int64]
    mtimes_ns: NDArray[np.int64]
    sha256: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class GalleryIndex:
    """N pictures with unit features [N, D]; U different captions with features [U, D], which M links tie to pictures.

    caption_image, caption_text: int64 [M], rows of the picture (rising) and of the caption that belong together.
    tie_order: [N], the place of each picture's id among all ids; None when the rows are in that order already.
    """

    root: Path
    image_features: NDArray[np.float32]
    image_ids: TextTable
    paths: TextTable
    captions: TextTable
    text_features: NDArray[np.float32]
    caption_image: NDArray[np.int64]
    caption_text: NDArray[np.int64]
    tie_order: NDArray[np.int64] | None
    fingerprints: Fingerprints | None
    info: IndexInfo

    def __len__(self) -> int:
        return len(self.image_ids)

    def captions_of(self, row: int) -> list[str]:
        """The captions of one picture; none for a gallery without captions."""
        first, last = np.searchsorted(self.caption_image, [row, row + 1])
        return [self.captions[text] for text in self.caption_text[first:last].tolist()]

    def images_of(self, text: int) -> tuple[str, ...]:
        """The ids of the pictures that a caption was written for, each once."""
        rows = self.caption_image[np.flatnonzero(self.caption_text == text)]
        return tuple(self.image_ids[row] for row in dict.fromkeys(rows.tolist()))


def open_index(root: Path) -> GalleryIndex:
    """Open an index without reading its features.

    Raises DataError when a file is missing or broken, MismatchError when another version of cmpagl made it or its
    files do not belong together.
    """
    stored = read_json(root / INFO_FILE)
    file = open_tensor_file(root / FEATURES_FILE)
    if file.about.get("kind") != INDEX_KIND:
        raise DataError(f"{file.path} is not the features of an index", hint=_AGAIN)
    info = _read_info(file)
    if not isinstance(stored, dict) or stored.get("model_sha256") != info.model_sha256:
        raise MismatchError(f"{root / INFO_FILE} and {file.path} do not belong together", hint=_AGAIN)
    return _from_file(root, file, info)


def index_of_features(path: Path, features: FeatureSet) -> GalleryIndex:
    """The gallery of an exported feature set, so that its pictures can be searched as they are."""
    by_image = np.argsort(features.text_image, kind="stable")
    captions, caption_text = unique_texts(features.captions)
    _, first = np.unique(caption_text, return_index=True)
    info = features.info
    return GalleryIndex(
        root=path,
        image_features=features.image_features,
        image_ids=TextTable.of(features.image_ids),
        paths=TextTable.of(features.paths),
        captions=TextTable.of(captions),
        text_features=features.text_features[first],
        caption_image=features.text_image[by_image],
        caption_text=caption_text[by_image],
        tie_order=places(features.image_ids),
        fingerprints=None,
        info=IndexInfo(
            name=path.stem,
            kind="features",
            source=str(path),
            dataset=info.dataset,
            manifest_sha256=info.manifest_sha256,
            model=info.model,
            run="",
            model_sha256=info.model_sha256,
            preprocessing=info.preprocessing,
            precision=info.precision,
        ),
    )


def places(texts: Sequence[str]) -> NDArray[np.int64]:
    """The place of each text among all of them in sorted order, [N]."""
    order = np.argsort(np.array(list(texts), dtype=object), kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place


def save_index(index: GalleryIndex, skipped: list[dict[str, str]]) -> None:
    """Write features, then index.json. skipped: {"path", "why"} of pictures that are left out.

    Raises CmpaglError when the disk refuses.
    """
    assert index.fingerprints is not None, "an index of files knows its files"
    arrays: dict[str, Array] = {
        "image_features": index.image_features,
        "text_features": index.text_features,
        "caption_image": index.caption_image,
        "caption_text": index.caption_text,
        "sizes": index.fingerprints.sizes,
        "mtimes_ns": index.fingerprints.mtimes_ns,
        "sha256": index.fingerprints.sha256,
        **index.image_ids.arrays("image_ids"),
        **index.paths.arrays("paths"),
        **index.captions.arrays("captions"),
    }
    about = asdict(index.info)
    write_tensor_file(index.root / FEATURES_FILE, arrays, {"gallery": about, "kind": INDEX_KIND})
    counts = {"pictures": len(index), "captions": len(index.caption_text)}
    write_json(index.root / INFO_FILE, {**about, **counts, "skipped": skipped})


def _read_info(file: TensorFile) -> IndexInfo:
    about = file.about.get("gallery")
    content: dict[str, Any] = about if isinstance(about, dict) else {}
    if content.get("format_version") != INDEX_FORMAT:
        raise MismatchError(
            f"{file.path}: format_version is {content.get('format_version')!r}, this cmpagl reads {INDEX_FORMAT}",
            hint=_AGAIN,
        )
    values = {field.name: content.get(field.name) for field in fields(IndexInfo)}
    if not all(isinstance(value, str) for name, value in values.items() if name != "format_version"):
        raise DataError(f"{file.path} does not say where it comes from", hint=_AGAIN)
    return IndexInfo(**values)  # type: ignore[arg-type]  # checked just above


def _from_file(root: Path, file: TensorFile, info: IndexInfo) -> GalleryIndex:
    image_features = file.array("image_features", "<f4", (None, None))
    count, dim = image_features.shape
    text_features = file.array("text_features", "<f4", (None, dim))
    caption_image = file.array("caption_image", "<i8", (None,))
    links = len(caption_image)
    caption_text = file.array("caption_text", "<i8", (links,))
    if links and not (
        caption_image[0] >= 0
        and caption_image[-1] < count
        and bool((np.diff(caption_image) >= 0).all())
        and 0 <= caption_text.min() <= caption_text.max() < len(text_features)
    ):
        raise DataError(f"{file.path} ties captions to pictures that are not there", hint=_AGAIN)
    return GalleryIndex(
        root=root,
        image_features=image_features,
        image_ids=file.texts("image_ids", count),
        paths=file.texts("paths", count),
        captions=file.texts("captions", len(text_features)),
        text_features=text_features,
        caption_image=caption_image,
        caption_text=caption_text,
        tie_order=None,  # the rows of an index are sorted by id
        fingerprints=Fingerprints(
            sizes=file.array("sizes", "<i8", (count,)),
            mtimes_ns=file.array("mtimes_ns", "<i8", (count,)),
            sha256=file.array("sha256", "|u1", (count, 32)),
        ),
        info=info,
    )
