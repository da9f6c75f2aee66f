"""Finds and reads annotations in any layout; later stages see only `Annotations`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cmpagl_core.datasets.annotations import Annotations
from cmpagl_core.datasets.sources_json import is_karpathy, is_list, read_karpathy, read_lists, split_of_file
from cmpagl_core.datasets.sources_text import is_precomp, is_table, read_precomp, read_table
from cmpagl_core.errors import DataError
from cmpagl_core.files import read_json

KNOWN_LAYOUTS = (
    'a Karpathy JSON file ({"images": [{"filename", "split", "sentences"}]}), a folder with AMFMN\'s '
    "train_caps.txt and train_filename.txt, JSON lists of {image, caption}, or a CSV with columns file and caption"
)
_TABLE_SUFFIXES = (".csv", ".tsv")
_MAX_ANNOTATION_BYTES = 1 << 30
_SEARCH_DEPTH = 3


def load_annotations(path: Path, dataset: str = "") -> Annotations:
    """Read the annotations of a file or folder; in a folder with several data sets, those of `dataset`.

    Raises DataError if there are none, several that fit equally well, or broken ones.
    """
    if path.is_dir():
        found = find_annotations(path, dataset)
        if found is None:
            raise DataError(f"there are no annotations in {path}", hint=f"give {KNOWN_LAYOUTS}")
        return found
    if not path.is_file():
        raise DataError(f"{path} does not exist", hint=f"give {KNOWN_LAYOUTS}")
    _check_size(path)
    if path.suffix.lower() in _TABLE_SUFFIXES:
        return read_table(path)
    if path.suffix.lower() == ".txt" and is_precomp(path.parent):
        return read_precomp(path.parent)
    content = read_json(path, json.loads)
    if is_karpathy(content):
        return read_karpathy(content, path)
    if is_list(content):
        return read_lists({path: content})
    raise DataError(f"{path} has no known layout", hint=f"give {KNOWN_LAYOUTS}")


def find_annotations(folder: Path, dataset: str = "", depth: int = _SEARCH_DEPTH) -> Annotations | None:
    """The annotations nearest to the top of a folder; None if there are none.

    Raises DataError if several fit equally well, or if those found are broken.
    """
    try:
        for folders in _levels(folder, depth):
            found = _in_folders(folders, dataset)
            if found is not None:
                return found
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read ({error.strerror})") from error
    return None


def _in_folders(folders: Sequence[Path], dataset: str) -> Annotations | None:
    files = [path for one in folders for path in sorted(one.iterdir()) if path.is_file() and path.name[0] != "."]
    contents = _parsed([path for path in files if path.suffix.lower() == ".json"], dataset)
    whole = [path for path, content in contents.items() if is_karpathy(content)]
    if whole:
        path = _only(whole, dataset)
        return read_karpathy(contents[path], path)
    lists = [path for path, content in contents.items() if is_list(content)]
    if lists:
        return read_lists({path: contents[path] for path in _one_or_by_split(_of_set(lists, dataset))})
    precomp = [one for one in folders if is_precomp(one)]
    if precomp:
        return read_precomp(_only(precomp, dataset))
    tables = [path for path in files if path.suffix.lower() in _TABLE_SUFFIXES and is_table(path)]
    if tables:
        return _read_tables(_one_or_by_split(_of_set(tables, dataset)))
    return None


def _read_tables(paths: Sequence[Path]) -> Annotations:
    """One table, or one per split, named in the file's name."""
    read = []
    for path in paths:
        split = split_of_file(path) if len(paths) > 1 else None
        images = read_table(path).images
        read += [replace(image, split=image.split or split) if split else image for image in images]
    return Annotations("table", tuple(read), tuple(paths))


def _parsed(paths: Sequence[Path], dataset: str) -> dict[Path, Any]:
    for path in paths:
        _check_size(path)
    return {path: read_json(path, json.loads) for path in _of_set(paths, dataset)}


def _of_set(paths: Sequence[Path], dataset: str) -> list[Path]:
    """The files whose name contains that of the data set, else all of them."""
    named = [path for path in paths if dataset and dataset in path.name.lower()]
    return named or list(paths)


def _only(paths: Sequence[Path], dataset: str) -> Path:
    chosen = _of_set(paths, dataset)
    if len(chosen) > 1:
        raise DataError(
            f"{chosen[0]} and {chosen[1]} both contain annotations", hint="choose one with --annotations FILE"
        )
    return chosen[0]


def _one_or_by_split(paths: list[Path]) -> list[Path]:
    """One file, or several of different splits."""
    splits = [split_of_file(path) for path in paths]
    if len(paths) > 1 and (None in splits or len(set(splits)) < len(splits)):
        raise DataError(
            f"{paths[0]} and {paths[1]} both contain captions, and their names do not give their splits",
            hint="choose one with --annotations FILE, or rename them ..._train, ..._val and ..._test",
        )
    return paths


def _levels(folder: Path, depth: int) -> Iterator[list[Path]]:
    level = [folder]
    for _ in range(depth):
        yield level
        below = [path for one in level for path in sorted(one.iterdir()) if path.is_dir() and not path.is_symlink()]
        level = [path for path in below if not path.name.startswith(".") and path.name != "__MACOSX"]
        if not level:
            return


def _check_size(path: Path) -> None:
    if path.stat().st_size > _MAX_ANNOTATION_BYTES:
        raise DataError(f"{path} has {path.stat().st_size:,} bytes, too many for annotations")
