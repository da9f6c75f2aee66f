"""Checks of a source before anything is written: counts, captions, duplicates, and full decoding of every image."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cmpagl_core.datasets.annotations import AnnotatedImage, Annotations
from cmpagl_core.datasets.manifest import Dropped
from cmpagl_core.datasets.matching import image_ids
from cmpagl_core.datasets.problems import Problem
from cmpagl_core.datasets.published import CAPTIONS_EACH, PublishedSet, recognise
from cmpagl_core.errors import DataError
from cmpagl_core.files import FileStamp
from cmpagl_core.imagery.images import checked_size
from cmpagl_core.imagery.reading import Reading
from cmpagl_core.imagery.stamps import stamp_file
from cmpagl_core.progress import Progress

_MOST_THREADS = 8
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
_CLAIM = {"test": 0, "val": 1, "train": 2, "": 3}  # an image in two splits is kept in the one where it cannot leak


@dataclass(frozen=True)
class CheckedImage:
    """An image that decodes."""

    width: int
    height: int
    file: FileStamp


def check_counts(annotations: Annotations, published: PublishedSet) -> list[Problem]:
    """Compare images per split and captions with the published numbers.

    Raises DataError if the annotations are those of another public data set.
    """
    counts = Counter(image.split for image in annotations.images)
    if not published.fits(counts):
        told = " / ".join(f"{counts[split]:,} {split or 'in no split'}" for split in reversed(_CLAIM) if counts[split])
        other = recognise(counts)
        if other is not None:
            raise DataError(
                f"{annotations.place} has {told}, so it is {other.title}, not {published.title}",
                hint=f"run `cmpagl prepare {other.name}`, or pass the annotations of {published.title}",
            )
        why = f"{published.title} was published with {published.expected()} images, but there are {told or 'none'}"
        return [Problem("other count", "images", why, annotations.place)]
    captions = sum(len(image.captions) for image in annotations.images)
    if captions != CAPTIONS_EACH * len(annotations.images):
        why = f"{published.title} was published with {CAPTIONS_EACH} per image, but there are {captions:,} in all"
        return [Problem("other count", "captions", why, annotations.place)]
    return []


def check_names(images: Sequence[AnnotatedImage]) -> tuple[dict[str, AnnotatedImage], list[Problem]]:
    """Each image once, under its id, and problems of names: empty, broken, duplicate.

    An image with several entries keeps the first one of the split from which it leaks least.
    """
    problems: list[Problem] = []
    usable = [image for image in images if image.stem and not _unwritable(image.name)]
    for image in images:
        if not image.stem or _unwritable(image.name):
            problems.append(
                Problem("bad name", image.name or "an image", "its file name is empty or not valid text", image.where)
            )
    entries: dict[str, list[AnnotatedImage]] = {}
    for image_id, image in zip(image_ids(usable), usable, strict=True):
        entries.setdefault(image_id, []).append(image)
    kept: dict[str, AnnotatedImage] = {}
    for image_id, same in entries.items():
        kept[image_id] = min(same, key=lambda image: _CLAIM[image.split])
        splits = sorted({image.split for image in same})
        why = "is in " + " and in ".join(splits) if len(splits) > 1 else "has more than one entry"
        problems += [
            Problem("duplicate", image.name, why, image.where) for image in same if image is not kept[image_id]
        ]
    return kept, problems


def check_captions(
    images: dict[str, AnnotatedImage], published: PublishedSet | None
) -> tuple[dict[str, AnnotatedImage], list[Problem], list[Dropped]]:
    """The images with their usable captions; problems of the others; and the known defects that were dropped."""
    kept: dict[str, AnnotatedImage] = {}
    problems: list[Problem] = []
    known: list[Dropped] = []
    for image_id, image in images.items():
        reasons = [_caption_problem(text) for text in image.captions]
        captions = tuple(text for text, reason in zip(image.captions, reasons, strict=True) if not reason)
        if captions:
            kept[image_id] = replace(image, captions=captions)
        if published is not None and image.stem in published.blank_captions and not captions:
            why = f"its {len(reasons)} captions are blank in the published {published.title}"
            known.append(Dropped(what=image.name, why=why))
        elif not reasons:
            problems.append(Problem("bad caption", image.name, "has no caption", image.where))
        else:
            problems += [Problem("bad caption", image.name, reason, image.where) for reason in reasons if reason]
    return kept, problems, known


def check_images(paths: Sequence[Path], reading: Reading, progress: Progress) -> dict[Path, CheckedImage | str]:
    """Decode every image completely, in threads (decoders release the GIL); a text says why one is broken."""
    with (
        progress.task("checking images", len(paths), "img") as advance,
        ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool,
    ):
        checked: dict[Path, CheckedImage | str] = {}
        try:
            for path, result in zip(paths, pool.map(partial(_check_image, reading), paths), strict=True):
                checked[path] = result
                advance(1)
        except BaseException:  # on Ctrl-C too, do not wait for the rest
            pool.shutdown(cancel_futures=True)
            raise
    return checked


def _check_image(reading: Reading, path: Path) -> CheckedImage | str:
    try:
        mark = stamp_file(path)  # taken before decoding, so that a file that changes meanwhile does not match its stamp
        width, height = checked_size(path, reading)
        return CheckedImage(width, height, mark)
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"


def _caption_problem(text: str) -> str:
    if not text.strip():
        return "has a blank caption"
    return "has a caption that is not valid text" if _unwritable(text) else ""


def _unwritable(text: str) -> bool:
    """Whether a text contains NUL or half a character (which JSON can encode)."""
    return _UNWRITABLE.search(text) is not None
