"""What an audit looks at: a prepared data set, or annotations alone, which may still have what `prepare` refuses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.datasets.annotations import Annotations
from cmpagl_core.datasets.manifest import SPLITS, Dropped
from cmpagl_core.datasets.prepared import PreparedDataset, open_prepared
from cmpagl_core.datasets.sources import load_annotations
from cmpagl_core.errors import DataError
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.workspace import MARKERS, Workspace


@dataclass(frozen=True, eq=False)
class AuditedSet:
    """N images with their splits and M captions; facts about image files are empty for annotations alone.

    caption_image: [M], the row of the caption's image. splits: "" where the annotations give none. content: of each
    image, equal if the pixels are. sizes: width and height in pixels. left_out: by `prepare`.
    """

    name: str
    image_ids: tuple[str, ...]
    splits: tuple[str, ...]
    captions: tuple[str, ...]
    caption_image: NDArray[np.int64]
    images: tuple[ImageRef, ...] = ()
    content: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    left_out: tuple[Dropped, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    @cached_property
    def split_names(self) -> tuple[str, ...]:
        """The splits that have images, in the usual order."""
        return tuple(split for split in ("", *SPLITS) if split in set(self.splits))

    def rows(self, split: str) -> list[int]:
        """Rows of the images of a split."""
        return [row for row, own in enumerate(self.splits) if own == split]

    def caption_rows(self, split: str) -> list[int]:
        """Rows of the captions of a split."""
        return [caption for caption, row in enumerate(self.caption_image.tolist()) if self.splits[row] == split]


def open_audited(workspace: Workspace, name: str | None) -> AuditedSet:
    """A prepared data set by name or folder (the newest if None), else annotations by file or folder.

    Raises DataError if there is neither, or if they are broken.
    """
    path = Path(name) if name is not None else None
    known = name is not None and (workspace.root / "data" / name / MARKERS["data"]).is_file()
    if path is None or known or (path / MARKERS["data"]).is_file() or not path.exists():
        return _of_prepared(open_prepared(workspace.find("data", name)))
    return _of_annotations(path, load_annotations(path))


def _of_prepared(prepared: PreparedDataset) -> AuditedSet:
    whole = prepared.split("all")
    images = prepared.images
    return AuditedSet(
        name=prepared.name,
        image_ids=whole.image_ids,
        splits=tuple(images["split"]),
        captions=whole.captions,
        caption_image=whole.caption_image,
        images=whole.images,
        content=whole.image_keys,
        sizes=tuple(zip(images["width"].tolist(), images["height"].tolist(), strict=True)),
        left_out=prepared.manifest.dropped,
    )


def _of_annotations(path: Path, annotations: Annotations) -> AuditedSet:
    images = annotations.images
    if not images:
        raise DataError(f"{annotations.place} names no images", hint="give annotations with images and captions")
    counts = [len(image.captions) for image in images]
    return AuditedSet(
        name=path.stem,
        image_ids=tuple(image.name for image in images),
        splits=tuple(image.split for image in images),
        captions=tuple(text for image in images for text in image.captions),
        caption_image=np.repeat(np.arange(len(images), dtype=np.int64), counts),
    )
