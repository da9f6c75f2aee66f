"""Zero-shot classification: each image gets the class whose name has the most similar features.

The usual test of image-text features on scene classes (as in CLIP, section 3.1); templates as in `prompts`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.encoders.encoder import Encoder
from cmpagl_core.encoders.prompts import encode_prompted
from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.files import atomic_file, atomic_path
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.listing import list_images
from cmpagl_core.progress import Progress
from cmpagl_core.sheets import write_sheet

TOP = 5
_NAME_COLUMNS = ("image", "file", "filename", "path")
_CLASS_COLUMN = "class"
_Z = 1.959963984540054  # of 95 %


@dataclass(frozen=True)
class Classes:
    """Class names, and the class of each image by its file name if known."""

    names: tuple[str, ...]
    of_file: dict[str, int]

    def truth(self, image: ImageRef) -> int:
        """The class of an image: by its file name, else by its folder; -1 if unknown."""
        found = self.of_file.get(image.path.name)
        if found is not None:
            return found
        folder = as_words(image.path.parent.name)
        return next((place for place, name in enumerate(self.names) if as_words(name) == folder), -1)


@dataclass(frozen=True)
class ClassRow:
    """One class: its number of images, and their accuracy in percent (None without any)."""

    name: str
    images: int
    top1: float | None
    top5: float | None
    predicted: int  # images that were given this class


@dataclass(frozen=True, eq=False)
class ZeroShot:
    """Predictions of N images over C classes. ranked: int64 [N, min(5, C)], best first. scores: of the first, [N].

    truth: int64 [N], -1 if unknown.
    """

    model: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    image_ids: tuple[str, ...]
    ranked: NDArray[np.int64]
    scores: NDArray[np.float64]
    truth: NDArray[np.int64]
    left_out: tuple[str, ...]  # why images could not be read

    @property
    def known(self) -> NDArray[np.bool_]:
        """[N], the images whose class is known."""
        return np.asarray(self.truth >= 0)

    def hits(self, k: int) -> NDArray[np.bool_]:
        """[images of a known class], whether the class is among the first k."""
        return np.asarray((self.ranked[self.known, :k] == self.truth[self.known, None]).any(axis=1))

    def accuracy(self, k: int) -> float | None:
        """Top-k accuracy in percent; None if no class is known."""
        return 100 * float(self.hits(k).mean()) if self.known.any() else None

    def interval(self, k: int) -> tuple[float, float] | None:
        """95 % of the accuracy over images, in percent (Wilson's)."""
        hits = self.hits(k)
        if not len(hits):
            return None
        n, p = len(hits), float(hits.mean())
        middle, half = p + _Z**2 / (2 * n), _Z * float(np.sqrt(p * (1 - p) / n + _Z**2 / (4 * n * n)))
        scale = 100 / (1 + _Z**2 / n)
        return scale * (middle - half), scale * (middle + half)

    def confusion(self) -> NDArray[np.int64]:
        """Number of images [C, C] by true and predicted class."""
        counts = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        np.add.at(counts, (self.truth[self.known], self.ranked[self.known, 0]), 1)
        return counts

    def rows(self) -> tuple[ClassRow, ...]:
        """One per class, in their order."""
        first, all_five, truth = self.hits(1), self.hits(TOP), self.truth[self.known]
        return tuple(
            ClassRow(
                name,
                int((truth == place).sum()),
                100 * float(first[truth == place].mean()) if (truth == place).any() else None,
                100 * float(all_five[truth == place].mean()) if (truth == place).any() else None,
                int((self.ranked[:, 0] == place).sum()),
            )
            for place, name in enumerate(self.classes)
        )

    def to_json(self) -> dict[str, Any]:
        """{"model", "images", "top1", "top1_ci95", "top5", "classes": [...], "confusion": [[...]]}; percent."""
        return {
            "model": self.model,
            "templates": list(self.templates),
            "images": len(self.image_ids),
            "of_known_class": int(self.known.sum()),
            "left_out": len(self.left_out),
            "top1": self.accuracy(1),
            "top1_ci95": self.interval(1),
            "top5": self.accuracy(TOP),
            "top5_ci95": self.interval(TOP),
            "classes": [asdict(row) for row in self.rows()],
            "confusion": self.confusion().tolist(),
        }


def read_classes(path: Path) -> Classes:
    """Class names, one per line, or a table with the columns `image` (or file, filename, path) and `class`.

    Raises DataError for anything else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if path.suffix.lower() not in (".csv", ".tsv"):
        names = tuple(dict.fromkeys(lines))
        return Classes(_at_least_two(names, path), {})
    try:
        rows = list(csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except csv.Error as error:
        raise DataError(f"{path} is not a table ({error})") from error
    columns = set(rows[0]) if rows else set()
    named = next((column for column in _NAME_COLUMNS if column in columns), None)
    if named is None or _CLASS_COLUMN not in columns:
        raise DataError(
            f"{path} has no columns image and class", hint="or write one class name per line to a .txt file"
        )
    rows = [row for row in rows if row[_CLASS_COLUMN] and row[named]]
    names = _at_least_two(tuple(sorted({row[_CLASS_COLUMN] for row in rows})), path)
    place = {name: number for number, name in enumerate(names)}
    return Classes(names, {Path(row[named]).name: place[row[_CLASS_COLUMN]] for row in rows})


def classify(
    encoder: Encoder, folder: Path, classes: Classes, templates: Sequence[str], progress: Progress
) -> ZeroShot:
    """Classify every image under a folder. Raises DataError if none can be read."""
    root = folder.absolute()
    listing = list_images(root)
    images = [ImageRef(path.relative_to(root).as_posix(), path) for path in listing.images]
    texts = encode_prompted(encoder.encode_texts, [as_words(name) for name in classes.names], templates)
    first = min(TOP, len(classes.names))
    ranked = np.full((len(images), first), -1, dtype=np.int64)
    scores = np.zeros(len(images))
    left_out = [one.why for one in listing.left_out]
    with progress.task("classify images", len(images), "img") as advance:
        for batch in encoder.encode_images(images):
            products = batch.features.astype(np.float64) @ texts.astype(np.float64).T  # [B, C]
            order = np.argsort(-products, axis=1, kind="stable")[:, :first]
            ranked[batch.rows], scores[batch.rows] = order, np.take_along_axis(products, order[:, :1], axis=1)[:, 0]
            left_out += [one.why for one in batch.broken]
            advance(len(batch.rows) + len(batch.broken))
    read = ranked[:, 0] >= 0
    if not read.any():
        raise DataError(f"none of the {len(images):,} images in {folder} can be read", hint=left_out[0])
    return ZeroShot(
        model=encoder.name,
        classes=classes.names,
        templates=tuple(templates),
        image_ids=tuple(image.image_id for image, taken in zip(images, read, strict=True) if taken),
        ranked=ranked[read],
        scores=scores[read],
        truth=np.array([classes.truth(image) for image in images], dtype=np.int64)[read],
        left_out=tuple(left_out),
    )


def write_predictions(found: ZeroShot, path: Path) -> None:
    """One line per image: its class if known, and the top five. Raises CmpaglError if writing fails."""
    with atomic_file(path) as stream:
        places = range(1, found.ranked.shape[1] + 1)
        head = ["image_id", "class", "score", *(f"predicted_{place}" for place in places)]
        write_sheet(stream, head, _lines(found))


def draw_confusion(found: ZeroShot, path: Path) -> None:
    """The confusion matrix as a PNG, each row in percent of its class.

    Raises CmpaglError when matplotlib is not installed or the disk refuses.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CmpaglError("matplotlib is not installed", hint="pip install 'cmpagl[plots]'") from error
    counts = found.confusion()
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 3 + 0.28 * len(found.classes)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=100)
    places, names = range(len(found.classes)), [as_words(name) for name in found.classes]
    axes.set_xticks(places, names, rotation=90)
    axes.set_yticks(places, names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("class")
    figure.colorbar(image, label="% of the class")
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=130, format="png")


def as_words(name: str) -> str:
    """A class name as words: `denseResidential`, `dense_residential` and `DenseResidential2` alike."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|[_\-.\s]+", " ", name)
    return " ".join(re.sub(r"\d+$", "", apart).lower().split())


def _lines(found: ZeroShot) -> Iterator[list[Any]]:
    for image_id, ranked, score, truth in zip(
        found.image_ids, found.ranked.tolist(), found.scores.tolist(), found.truth.tolist(), strict=True
    ):
        known = found.classes[truth] if truth >= 0 else ""
        yield [image_id, known, f"{score:.6f}", *(found.classes[place] for place in ranked)]


def _at_least_two(names: tuple[str, ...], path: Path) -> tuple[str, ...]:
    if len(names) < 2:
        raise DataError(f"{path} has {len(names)} classes", hint="list at least two")
    return names
