"""GalleryIndex: the searchable images with their features and captions, stored in a folder.

The features file has everything that a search reads and is memory-mapped; a text tower is the model's text encoder, so
that a query needs no torch; `index.json` records the origin of everything and lists these files (`marker.py`). Opening
an index needs only NumPy; `indexing.py` builds one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.encoders.tensor_file import Array, TensorFile, TextTable, open_tensor_file, write_tensor_file
from cmpagl_core.errors import CmpaglError, DataError, MismatchError
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.reading import Reading
from cmpagl_core.imagery.stamps import Broken
from cmpagl_core.search.marker import (
    AGAIN,
    INDEX_FORMAT,
    INFO_FILE,
    IndexFile,
    Marker,
    read_marker,
    write_marker,
    write_named,
)
from cmpagl_core.search.scenes import SceneTable
from cmpagl_core.search.stored import FileStamps, read_windows, window_of

if TYPE_CHECKING:
    from cmpagl_core.encoders.encoder import Fingerprint

INDEX_KIND = "gallery_index"


@dataclass(frozen=True)
class IndexInfo:
    """Where a gallery comes from. Hashes are hex digests of SHA-256.

    source: the folder of a "folder" gallery, what was named of a "files" one, the root of a "dataset" one, the file of
    a "features" one, the indexes of a "merged" one.
    model: the encoder's name; model_kind, model_source: how to rebuild it, empty if unknown.
    """

    name: str
    kind: Literal["folder", "files", "dataset", "features", "merged"]
    source: str
    dataset: str
    manifest_sha256: str
    model: str
    model_kind: Literal["run", "open_clip", ""]
    model_source: str
    model_sha256: str
    preprocessing: str
    precision: str
    bands: str = "auto"  # as Reading has them
    stretch: str = "auto"
    tiling: str = "auto"  # as Tiling spells it
    templates: str = ""  # wordings of texts, as `written_templates` has them
    store: str = "exact"  # that it is searched by: exact, faiss or milvus:URI
    format_version: int = INDEX_FORMAT

    @property
    def fingerprint(self) -> Fingerprint:
        """That of the features: the encoder's, and how images were read for it."""
        from cmpagl_core.encoders.encoder import Fingerprint  # which a query does without

        return Fingerprint(self.model_sha256, f"{self.reading.words}; {self.preprocessing}", self.precision)

    @property
    def encoder_fingerprint(self) -> Fingerprint:
        """The encoder's alone."""
        return replace(self.fingerprint, preprocessing=self.preprocessing)

    @property
    def reading(self) -> Reading:
        """Which bands of its images were encoded, and how they became 8 bits."""
        return Reading(self.bands, self.stretch)


@dataclass(frozen=True, eq=False)
class GalleryIndex:
    """N images with unit features [N, D]; U different captions with features [U, D], which M links tie to images.

    caption_image, caption_text: int64 [M], rows of the image (rising) and of the caption that belong together.
    windows: int64 [N, 4], left, top, width and height of a piece of its file, of width 0 where it is the whole; None
    where all are whole. tie_order: [N], the place of each image's id among all ids; None when the rows are in that
    order already.
    """

    root: Path
    image_features: NDArray[np.float32]
    image_ids: TextTable
    paths: TextTable
    windows: NDArray[np.int64] | None
    captions: TextTable
    text_features: NDArray[np.float32]
    caption_image: NDArray[np.int64]
    caption_text: NDArray[np.int64]
    tie_order: NDArray[np.int64] | None
    stamps: FileStamps | None
    info: IndexInfo
    tower: Path | None = None  # the file of the text half, where there is one
    scenes: SceneTable | None = None
    faiss: tuple[Path, Path] | None = None  # a faiss index and its rows, where the store is one

    def __len__(self) -> int:
        return len(self.image_ids)

    def image(self, row: int) -> ImageRef:
        """One image."""
        scene = None if self.scenes is None else self.scenes.scene(row)
        window = window_of(self.windows, row)
        return ImageRef(self.image_ids[row], Path(self.paths[row]), window, self.info.reading, scene)

    def captions_of(self, row: int) -> list[str]:
        """The captions of one image; none for a gallery without captions."""
        first, last = np.searchsorted(self.caption_image, [row, row + 1])
        return [self.captions[text] for text in self.caption_text[first:last].tolist()]

    def images_of(self, text: int) -> tuple[str, ...]:
        """The ids of the images that a caption was written for, each once."""
        rows = self.caption_image[np.flatnonzero(self.caption_text == text)]
        return tuple(self.image_ids[row] for row in dict.fromkeys(rows.tolist()))


def open_index(root: Path) -> GalleryIndex:
    """Open an index without reading its features.

    Raises DataError if a file is missing or broken, MismatchError if another version of cmpagl wrote the index or a
    file is not the one listed in index.json.
    """
    while True:
        marker = read_marker(root)
        try:
            return _open_named(marker)
        except CmpaglError:
            if read_marker(root) == marker:
                raise  # otherwise it was rebuilt between our two reads, and its old files are gone


def places(texts: Sequence[str]) -> NDArray[np.int64]:
    """The position of each text in sorted order, [N]."""
    order = np.argsort(np.array(list(texts), dtype=object), kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place


def save_index(
    index: GalleryIndex, reader: str, left_out: Sequence[Broken], more: Mapping[str, IndexFile]
) -> GalleryIndex:
    """Write an index and return it as opened again.

    reader: what found the images broken that are left out. more: files that are written already, such as the text
    half of the index's model. Raises CmpaglError when the disk refuses.
    """
    assert index.stamps is not None, "an index of files knows its files"
    arrays: dict[str, Array] = {
        "image_features": index.image_features,
        "text_features": index.text_features,
        "caption_image": index.caption_image,
        "caption_text": index.caption_text,
        **index.stamps.arrays(),
        **index.image_ids.arrays("image_ids"),
        **index.paths.arrays("paths"),
        **index.captions.arrays("captions"),
    }
    if index.windows is not None:
        arrays["windows"] = index.windows
    if index.scenes is not None:
        arrays.update(index.scenes.arrays())
    features = write_named(index.root, "features", partial(_write_features, arrays, index.info))
    files = {"features": features, **more}
    about = {**asdict(index.info), "images": len(index), "captions": len(index.caption_text)}
    write_marker(index.root, about, files, reader, left_out)
    return open_index(index.root)


def _open_named(marker: Marker) -> GalleryIndex:
    values = {field.name: marker.content.get(field.name) for field in fields(IndexInfo)}
    path, tower = marker.path_of("features"), marker.path_of("text_tower")
    faiss, faiss_rows = marker.path_of("faiss"), marker.path_of("faiss_rows")
    if path is None or not all(isinstance(value, str) for name, value in values.items() if name != "format_version"):
        raise DataError(f"{marker.root / INFO_FILE} does not record its origin", hint=AGAIN)
    file = open_tensor_file(path)
    info = IndexInfo(**values)  # type: ignore[arg-type]  # checked just above
    if file.about != _about(info):
        raise MismatchError(f"{marker.root / INFO_FILE} and {file.path} do not belong together", hint=AGAIN)
    index = _from_file(marker.root, file, info, tower)
    return index if faiss is None or faiss_rows is None else replace(index, faiss=(faiss, faiss_rows))


def _write_features(arrays: Mapping[str, Array], info: IndexInfo, path: Path) -> None:
    write_tensor_file(path, arrays, _about(info))


def _about(info: IndexInfo) -> dict[str, str]:
    """The origin of features, as metadata of their file."""
    return {"kind": INDEX_KIND, **asdict(info.fingerprint)}


def _from_file(root: Path, file: TensorFile, info: IndexInfo, tower: Path | None) -> GalleryIndex:
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
        raise DataError(f"{file.path} links captions to images that do not exist", hint=AGAIN)
    return GalleryIndex(
        root=root,
        image_features=image_features,
        image_ids=file.texts("image_ids", count),
        paths=file.texts("paths", count),
        windows=read_windows(file, count),
        captions=file.texts("captions", len(text_features)),
        text_features=text_features,
        caption_image=caption_image,
        caption_text=caption_text,
        tie_order=None,  # the rows of an index are sorted by id
        stamps=FileStamps.read(file, count),
        info=info,
        tower=tower,
        scenes=SceneTable.read(file, count),
    )
