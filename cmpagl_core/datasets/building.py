"""Check a located source, split it, and write it as a prepared data set; or list everything that is wrong with it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cmpagl_core.datasets.annotations import AnnotatedImage
from cmpagl_core.datasets.checks import CheckedImage, check_captions, check_counts, check_images, check_names
from cmpagl_core.datasets.locating import Located
from cmpagl_core.datasets.manifest import SPLITS, Manifest, Source
from cmpagl_core.datasets.matching import ImageIndex
from cmpagl_core.datasets.prepared import CAPTION_COLUMNS, IMAGE_COLUMNS
from cmpagl_core.datasets.problems import PROBLEMS_FILE, Problem, fail, plain
from cmpagl_core.datasets.published import PUBLISHED, PublishedSet, ucm_number
from cmpagl_core.datasets.request import DEFAULT_FRACTIONS, PrepareRequest
from cmpagl_core.datasets.splits import seeded_split
from cmpagl_core.datasets.staging import stage_folder
from cmpagl_core.datasets.writing import Provenance, write_prepared
from cmpagl_core.errors import CmpaglError, DataError, UsageError
from cmpagl_core.files import sha256_file
from cmpagl_core.imagery.companions import companions
from cmpagl_core.progress import Progress

VALIDATION_FRACTION = 0.1  # cut from train, by image, if the annotations have no validation split
COPIES_FOLDER = "images"
_SHOWN_NAMES = 3


@dataclass(frozen=True)
class _Entry:
    """One image of the new data set."""

    image_id: str
    image: AnnotatedImage
    path: Path
    checked: CheckedImage


def build(request: PrepareRequest, located: Located, root: Path, fingerprint: str, progress: Progress) -> Manifest:
    """Build the data set in `root`. Raises DataError if something is wrong and must not be skipped."""
    published = PUBLISHED.get(request.source)
    annotations = located.annotations
    problems = check_counts(annotations, published) if published is not None else []
    named, wrong_names = check_names(annotations.images)
    captioned, wrong_captions, known_defects = check_captions(named, published)
    entries, wrong_images = _with_images(captioned, located, request, progress)
    problems += [*wrong_names, *wrong_captions, *wrong_images]
    if problems and not request.skip_missing:
        raise fail(problems, request.name or request.source, root)
    if not entries:
        raise DataError(f"no image of {annotations.place} can be used")
    splits, protocol = _splits(request, captioned, entries, published)
    paths = _copied(entries, located, root, fingerprint, progress) if request.copy else {}
    images = [_image_row(entry, paths.get(entry.path, entry.path), splits, published, root) for entry in entries]
    provenance = Provenance(
        name=request.name or request.source,
        source=request.source,
        layout=annotations.layout,
        protocol=protocol,
        complete=not problems,
        sources=_sources(located),
        dropped=(*known_defects, *(problem.dropped() for problem in problems)),
        fingerprint=fingerprint,
        reading=request.reading,
    )
    table = pd.DataFrame(images, columns=list(IMAGE_COLUMNS))
    manifest = write_prepared(root, table, _caption_table(entries), provenance).manifest
    (root / PROBLEMS_FILE).unlink(missing_ok=True)
    return manifest


def _with_images(
    images: dict[str, AnnotatedImage], located: Located, request: PrepareRequest, progress: Progress
) -> tuple[list[_Entry], list[Problem]]:
    """Find and decode the image of every entry; problems are missing, ambiguous, shared or broken images."""
    published = PUBLISHED.get(request.source)
    alias = ucm_number if published is not None and published.scenes == "ucm" else None
    index = ImageIndex.of(located.images_root, located.files, list(images.values()), alias)
    found: dict[str, Path] = {}
    owner: dict[Path, str] = {}
    problems: list[Problem] = []
    any_known = False
    for image_id, image in images.items():
        candidates = index.find(image)
        any_known = any_known or bool(candidates)
        if not candidates:
            problems.append(Problem("missing", image.name, "the image does not exist", image.where))
        elif len(candidates) > 1:
            why = f"could be {candidates[0]} or {candidates[1]}"
            problems.append(Problem("ambiguous", image.name, why, image.where))
        elif candidates[0] in owner:
            why = f"is the same image file as {owner[candidates[0]]}"
            problems.append(Problem("duplicate", image.name, why, image.where))
        else:
            found[image_id] = candidates[0]
            owner[candidates[0]] = image.name
    if images and not any_known:
        raise _nothing_matches(located)
    checked = check_images(list(found.values()), request.reading, progress)
    entries = []
    for image_id, path in found.items():
        result = checked[path]
        if isinstance(result, str):
            problems.append(Problem("unreadable image", images[image_id].name, result, str(path)))
        else:
            entries.append(_Entry(image_id, images[image_id], path, result))
    return entries, problems


def _nothing_matches(located: Located) -> DataError:
    names = [path.relative_to(located.images_root).as_posix() for path in located.files[:_SHOWN_NAMES]]
    asked = [image.name for image in located.annotations.images[:_SHOWN_NAMES]]
    return DataError(
        f"none of the {len(located.annotations.images):,} images in {located.annotations.place} "
        f"({', '.join(asked)}, ...) is in {located.images_root} ({', '.join(names)}, ...)",
        hint="they seem to belong to different data sets",
    )


def _splits(
    request: PrepareRequest,
    captioned: dict[str, AnnotatedImage],
    entries: list[_Entry],
    published: PublishedSet | None,
) -> tuple[dict[str, str], str]:
    """The split of every image id, and the protocol in words.

    Given splits are kept; if there is no validation split, one is cut from train. The cut depends on the annotations
    alone, so missing images do not move others. Without splits, images are assigned by seed (by their bytes, so that
    no copy of a training image is tested).
    """
    given = {image_id: image.split for image_id, image in captioned.items()}
    whose = f"of {published.title} as published" if published is not None else "as given"
    if not any(given.values()):
        return _deal(request, entries)
    if request.fractions is not None:
        raise UsageError("the annotations already have splits", hint="leave --split out")
    without = next((captioned[image_id] for image_id, split in given.items() if not split), None)
    if without is not None:
        raise DataError(f"{without.where}: {without.name!r} has no split, but others do", hint="add its split")
    if request.source == "synthetic":
        return given, f"drawn by cmpagl with seed {request.seed}; splits as drawn"
    train = [image_id for image_id, split in given.items() if split == "train"]
    if "val" in given.values() or not train:
        return given, f"splits {whose}"
    fractions = {"train": 1 - VALIDATION_FRACTION, "val": VALIDATION_FRACTION}
    cut = seeded_split(train, fractions, request.seed)
    protocol = (
        f"test {whose}; val is {VALIDATION_FRACTION:.0%} of the train images {whose}, "
        f"cut by image with seed {request.seed} (ours)"
    )
    return {**given, **cut}, protocol


def _deal(request: PrepareRequest, entries: list[_Entry]) -> tuple[dict[str, str], str]:
    shares = request.fractions or DEFAULT_FRACTIONS
    fractions = {split: share for split, share in zip(SPLITS, shares, strict=True) if share > 0}
    dealt = seeded_split((entry.checked.file.sha256 for entry in entries), fractions, request.seed)
    told = " / ".join(f"{share:.0%} {split}" for split, share in fractions.items())
    splits = {entry.image_id: dealt[entry.checked.file.sha256] for entry in entries}
    return splits, f"{told}, assigned by image with seed {request.seed} (ours)"


def _copied(
    entries: list[_Entry], located: Located, root: Path, fingerprint: str, progress: Progress
) -> dict[Path, Path]:
    """Copy the images into the data set's own folder; returns {old path: new path}."""
    place = {entry.path: entry.path.relative_to(located.images_root) for entry in entries}

    def fill(folder: Path) -> None:
        with progress.task("copying images", len(entries), "img") as advance:
            for path, inside in place.items():
                (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                _copy(path, folder / inside, root / COPIES_FOLDER / inside)
                for beside in companions(path):
                    if beside.is_relative_to(located.images_root):
                        there = beside.relative_to(located.images_root)
                        (folder / there).parent.mkdir(parents=True, exist_ok=True)
                        _copy(beside, folder / there, root / COPIES_FOLDER / there)
                advance(1)

    stage_folder(root / COPIES_FOLDER, {"fingerprint": fingerprint}, fill)
    return {path: root / COPIES_FOLDER / inside for path, inside in place.items()}


def _copy(path: Path, target: Path, place: Path) -> None:
    """place: where it will be in the end. Raises CmpaglError when the disk refuses."""
    try:
        shutil.copy2(path, target)
    except OSError as error:  # the error may be about either file
        raise CmpaglError(
            f"cannot copy {path} to {place} ({error.strerror or error})",
            hint="nothing was left half written; free disk space or choose another --workspace",
        ) from error


def _image_row(
    entry: _Entry, path: Path, splits: dict[str, str], published: PublishedSet | None, root: Path
) -> tuple[str, str, str, int, int, int, int, str, str]:
    scene = published.scene(entry.image.stem) if published is not None else plain(entry.image.scene)
    checked = entry.checked
    where = _stored(path, root)
    sizes = checked.width, checked.height, checked.file.size, checked.file.mtime_ns
    return entry.image_id, where, splits[entry.image_id], *sizes, checked.file.sha256, scene


def _caption_table(entries: list[_Entry]) -> pd.DataFrame:
    rows = [
        (f"{entry.image_id}#{number}", entry.image_id, text)
        for entry in entries
        for number, text in enumerate(entry.image.captions)
    ]
    return pd.DataFrame(rows, columns=list(CAPTION_COLUMNS))


def _stored(path: Path, root: Path) -> str:
    """A path relative to the data set if the image is in the workspace, so that both can be moved together."""
    there = path.parent.resolve() / path.name  # a link to an image keeps its own name
    if there.is_relative_to(root.parent.resolve()):
        return os.path.relpath(there, root.resolve())
    return str(there)


def _sources(located: Located) -> tuple[Source, ...]:
    files = [path for path in located.annotations.files if path.is_file()]
    read = [Source(what="annotations", path=str(path.absolute()), sha256=sha256_file(path)) for path in files]
    return (*read, Source(what="images", path=str(located.images_root.absolute())))
