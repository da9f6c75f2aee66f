"""Finds the images and captions of a data set: given, under `data/raw/NAME`, in an archive, or drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cmpagl_core.synthetic
from cmpagl_core.datasets.annotations import Annotations
from cmpagl_core.datasets.archives import is_archive, unpack
from cmpagl_core.datasets.published import PublishedSet
from cmpagl_core.datasets.sources import find_annotations, load_annotations
from cmpagl_core.datasets.sources_text import read_class_folders
from cmpagl_core.datasets.staging import stage_folder
from cmpagl_core.errors import DataError
from cmpagl_core.imagery.images import IMAGE_SUFFIXES
from cmpagl_core.imagery.listing import list_images
from cmpagl_core.progress import Progress

SOURCE_FOLDER = "source"  # in the data set's own folder: unpacked or drawn images


@dataclass(frozen=True)
class Located:
    """A source, read but not yet checked."""

    images_root: Path
    files: tuple[Path, ...]
    annotations: Annotations


def locate_published(
    published: PublishedSet, raw: Path, images: Path | None, annotations: Path | None, root: Path, progress: Progress
) -> Located:
    """The images and captions of a public set, as given or from the folder `raw`.

    Archives are unpacked into `root`. Raises DataError, which says which files to put where and where to get them.
    """
    if images is None:
        archives = _raw_archives(raw)
        if not archives and not _has_images(raw):
            raise DataError(f"the images of {published.title} are missing", hint=published.where_to_get(raw))
        images_root = raw if _has_images(raw) else _unpacked(archives, root, progress)
    else:
        images_root = _folder_or_unpacked(images, root, progress)
    found = load_annotations(annotations, published.name) if annotations is not None else None
    for folder in (raw, images_root):
        if found is None and folder.is_dir():
            found = find_annotations(folder, published.name)
    if found is None:
        raise DataError(f"the captions of {published.title} are missing", hint=published.where_to_get(raw))
    return Located(images_root, list_images(images_root).whole(), found)


def locate_folder(folder: Path, annotations: Path | None, root: Path, progress: Progress) -> Located:
    """A user's own images, with a captions file (in the same folder or given) or one folder per class."""
    images_root = _folder_or_unpacked(folder, root, progress)
    images = list_images(images_root).whole()
    usual = [images_root / f"captions{suffix}" for suffix in (".csv", ".tsv")]
    given = annotations or next((path for path in usual if path.is_file()), None)
    if given is not None:
        found: Annotations | None = load_annotations(given)
    else:
        found = find_annotations(images_root, depth=1)
    return Located(images_root, images, found or read_class_folders(images_root, images))


def locate_synthetic(count: int, seed: int, image_size_px: int, root: Path, progress: Progress) -> Located:
    """Scenes drawn into `root`, unless the same code has already drawn them there."""
    from cmpagl_core.synthetic.generate import CAPTIONS_FILE, generate

    source = root / SOURCE_FOLDER
    stamp = {"count": count, "seed": seed, "image_size_px": image_size_px, "code": _drawing_code_sha256()}
    stage_folder(source, stamp, lambda folder: generate(folder, count, seed, image_size_px, progress))
    images = source / "images"
    return Located(images, list_images(images).whole(), load_annotations(source / CAPTIONS_FILE))


def _folder_or_unpacked(path: Path, root: Path, progress: Progress) -> Path:
    if is_archive(path):
        return _unpacked([path], root, progress)
    if not path.exists():
        raise DataError(f"{path} does not exist", hint="pass a folder of images, or a zip or tar archive")
    if not path.is_dir():
        raise DataError(f"{path} is neither a folder nor a zip or tar archive")
    return path


def _unpacked(archives: Sequence[Path], root: Path, progress: Progress) -> Path:
    """The archives' content under `root`, each in its own folder if there are several."""

    def fill(folder: Path) -> None:
        for number, archive in enumerate(archives):
            inside = folder / f"{number}" if len(archives) > 1 else folder
            inside.mkdir(exist_ok=True)
            unpack(archive, inside, progress)

    states = [(archive, archive.stat()) for archive in archives]
    stamp = {"archives": [[str(path.absolute()), state.st_size, state.st_mtime_ns] for path, state in states]}
    stage_folder(root / SOURCE_FOLDER, stamp, fill)
    return root / SOURCE_FOLDER


def _raw_archives(raw: Path) -> list[Path]:
    """Archives in the folder, or beside it with its name (`data/raw/rsicd.zip`)."""
    inside = sorted(raw.iterdir()) if raw.is_dir() else []
    beside = sorted(raw.parent.glob(f"{raw.name}.*")) if raw.parent.is_dir() else []
    return [path for path in (*inside, *beside) if is_archive(path)]


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*"))


def _drawing_code_sha256() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(cmpagl_core.synthetic.__path__[0]).glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
