"""WebDataset shards as a source of `prepare`: tar files, local or in an object store, whose samples share a base name.

Each shard is unpacked once into the data set's own folder, which appears there when it is complete, so that a `prepare`
that was stopped goes on at the first missing shard. A sample's files are named as webdataset names them: everything
before the first dot of the file name is its key, the rest says what it is.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from cmpagl_core.datasets.annotations import Annotations
from cmpagl_core.datasets.archives import Budget, place_member, read_tar, tar_suffix, write_member
from cmpagl_core.datasets.locating import Located
from cmpagl_core.datasets.sources_text import read_table
from cmpagl_core.datasets.staging import is_staged, stage_folder
from cmpagl_core.errors import DataError, UsageError
from cmpagl_core.files import atomic_file
from cmpagl_core.imagery.images import IMAGE_SUFFIXES
from cmpagl_core.imagery.remote_file import INSTALL, VERSION_KEYS, filesystem, is_url, reading
from cmpagl_core.progress import Progress

SHARDS_FOLDER = "shards"  # in the data set's own folder
CAPTIONS_FILE = "captions.csv"

_CAPTION_FIELDS = ("txt", "caption", "text", "json")  # the first that a sample has; json: see _captions_of
_JSON_CAPTIONS = ("captions", "caption", "text")
_BARE_IMAGE = "img_content"  # RS5M's name for an image of any format
_LONGEST_CAPTIONS_BYTES = 1 << 20
_SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_KINDS = ((b"\x89PNG", ".png"), (b"RIFF", ".webp"), (b"II*\0", ".tif"), (b"MM\0*", ".tif"), (b"BM", ".bmp"))


@dataclass(frozen=True)
class Shard:
    """One tar file. stamp: what tells that it has changed."""

    url: str
    size: int
    stamp: dict[str, Any]

    def open(self) -> IO[bytes]:
        if not is_url(self.url):
            return Path(self.url).open("rb")
        opened: IO[bytes] = filesystem(self.url).open(self.url, "rb")
        return opened


@dataclass
class _Sample:
    """What was read of one sample so far."""

    key: str
    image: str = ""  # name in the shard's folder
    texts: dict[str, bytes] = field(default_factory=dict)


def locate_shards(spec: str, root: Path, progress: Progress) -> Located:
    """The images and captions of shards, unpacked into `root`; those that are there and have not changed are kept.

    spec: a file, a folder, or a URL that fsspec reads; `{000..127}` and `*` stand for several. Raises DataError for
    shards that cannot be read, UsageError for a missing package.
    """
    shards = find_shards(spec)
    home = root / SHARDS_FOLDER
    folders = [home / f"{number:05d}" for number in range(len(shards))]
    for stale in home.iterdir() if home.is_dir() else ():
        if stale not in folders:
            shutil.rmtree(stale, ignore_errors=True)
    missing = [
        (shard, folder) for shard, folder in zip(shards, folders, strict=True) if not is_staged(folder, shard.stamp)
    ]
    with progress.task("unpacking shards", sum(shard.size for shard, _ in missing), "B") as advance:
        for shard, folder in missing:
            stage_folder(folder, shard.stamp, partial(_unpack, shard))
            advance(shard.size)
    tables = [folder / CAPTIONS_FILE for folder in folders]
    images = [
        replace(image, name=f"{table.parent.name}/{image.name}")
        for table in tables
        for image in read_table(table).images
    ]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return Located(home, tuple(files), Annotations("shards", tuple(images), tuple(tables)))


def find_shards(spec: str) -> list[Shard]:
    """The shards that are meant, in order. Raises DataError if there are none or one does not exist."""
    if spec.startswith("pipe:") or "::" in spec:
        raise UsageError(f"{spec[:100]!r} is neither a file nor a URL", hint="download the shards, or give their URLs")
    found = [shard for one in _expanded(spec) for shard in (_in_store(one) if is_url(one) else _on_disk(one))]
    if not found:
        raise DataError(f"there are no shards (.tar) at {spec}")
    return found


def _expanded(spec: str) -> list[str]:
    """Braces as webdataset reads them."""
    if "{" not in spec:
        return [spec]
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise UsageError("braces in the names of shards need webdataset", hint=INSTALL) from error
    urls: list[str] = expand_urls(spec)
    return urls


def _on_disk(name: str) -> Iterator[Shard]:
    path = Path(name)
    if path.is_dir():
        paths = sorted(one for one in path.iterdir() if tar_suffix(one.name) is not None)
    elif "*" in path.name:
        paths = sorted(path.parent.glob(path.name))
    else:
        paths = [path]
    for one in paths:
        try:
            state = one.stat()
        except OSError as error:
            raise DataError(f"{one} cannot be read ({error.strerror})") from error
        _check_name(one.name)
        stamp = {"url": str(one.absolute()), "size": state.st_size, "mtime_ns": state.st_mtime_ns}
        yield Shard(str(one), state.st_size, stamp)


def _in_store(url: str) -> Iterator[Shard]:
    store = filesystem(url)
    scheme = url.partition("://")[0]
    with reading(url):
        if url.endswith("/"):
            url += "*.tar"
        names = [f"{scheme}://{name}" for name in sorted(store.glob(url))] if "*" in url else [url]
        for name in names:
            _check_name(name)
            info = store.info(name)
            stamp = {"url": name} | {key: str(info[key]) for key in VERSION_KEYS if info.get(key) is not None}
            yield Shard(name, int(info.get("size") or 0), stamp)


def _check_name(name: str) -> None:
    if tar_suffix(name) is None:
        raise DataError(f"{name} is not a shard", hint="shards are tar files: .tar, .tar.gz or .tgz")


def _unpack(shard: Shard, folder: Path) -> None:
    """Images of a shard into `folder`, and their captions as a table."""
    budget = Budget(shard.url, shard.size, folder)
    with reading(shard.url), shard.open() as packed, atomic_file(folder / CAPTIONS_FILE) as stream:
        table = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
        table.writerow(("file", "caption"))
        for sample in _samples(packed, shard, folder, budget):
            for caption in _captions_of(sample, shard):
                table.writerow((sample.image or f"{sample.key}.missing", caption))


def _samples(packed: IO[bytes], shard: Shard, folder: Path, budget: Budget) -> Iterator[_Sample]:
    """Neighbouring files of one key; images are written as they come."""
    current: _Sample | None = None
    for name, stream in read_tar(packed, tar_suffix(shard.url) or ".tar", budget):
        matched = _SAMPLE.fullmatch(name)
        if matched is None or place_member(name, folder, budget, None) is None:
            continue
        key, kind = matched[1], matched[2].lower()
        if current is None or current.key != key:
            if current is not None and (current.image or current.texts):
                yield current
            current = _Sample(key)
        if f".{kind}" in IMAGE_SUFFIXES or kind == _BARE_IMAGE:
            head = stream.read(4) if kind == _BARE_IMAGE else b""
            suffix = f".{kind}" if kind != _BARE_IMAGE else _suffix_of(head)
            if current.image:
                raise budget.refuse(f"has two images of the sample {key[:100]!r}")
            path = place_member(f"{key}{suffix}", folder, budget, None)
            if path is not None:
                write_member(stream, path, budget, head)
                current.image = path.relative_to(folder).as_posix()
        elif kind in _CAPTION_FIELDS:
            text = stream.read(_LONGEST_CAPTIONS_BYTES + 1)
            if len(text) > _LONGEST_CAPTIONS_BYTES:
                raise budget.refuse(f"has a caption of over {_LONGEST_CAPTIONS_BYTES:,} bytes, {name[:100]!r}")
            current.texts[kind] = text
    if current is not None and (current.image or current.texts):
        yield current


def _captions_of(sample: _Sample, shard: Shard) -> list[str]:
    """The captions, in one line each; a blank one, which `prepare` reports, if there are none."""
    kind = next((kind for kind in _CAPTION_FIELDS if kind in sample.texts), None)
    if kind is None:
        return [""]
    try:
        text = sample.texts[kind].decode("utf-8")
        found: Any = json.loads(text) if kind == "json" else text
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{shard.url}: {sample.key[:100]}.{kind} is not UTF-8 {'JSON' if kind == 'json' else 'text'}"
        ) from error
    if isinstance(found, dict):
        found = next((found[key] for key in _JSON_CAPTIONS if key in found), "")
    captions = found if isinstance(found, list) else [found]
    if not all(isinstance(one, str) for one in captions):
        raise DataError(f"{shard.url}: a caption of {sample.key[:100]} is not text")
    return [" ".join(one.split()) for one in captions] or [""]


def _suffix_of(head: bytes) -> str:
    return next((suffix for start, suffix in _KINDS if head.startswith(start)), ".jpg")
