"""index.json, the marker of an index: it lists the other files by hash and is written last (ours).

A reader therefore always sees the old index or the new one during a rebuild, never a mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cmpagl_core.errors import CmpaglError, DataError, MismatchError, check_format
from cmpagl_core.files import FileStamp, now, partial_folder, read_json, write_json
from cmpagl_core.imagery.image_ref import ImageRef, Window
from cmpagl_core.imagery.stamps import Broken, stamp_file

INDEX_FORMAT = 5
INFO_FILE = "index.json"
AGAIN = "rebuild it with `cmpagl index`"


@dataclass(frozen=True)
class Marker:
    """The content of index.json. files: by their purpose."""

    root: Path
    content: dict[str, Any]
    files: dict[str, IndexFile]

    def path_of(self, key: str) -> Path | None:
        """A file listed in the marker, checked. Raises DataError or MismatchError if it is missing or different."""
        if key not in self.files:
            return None
        return self.files[key].checked_in(self.root)

    def left_out(self, reader: str) -> list[Broken]:
        """The images that were left out; none if another reader found them broken, since this one may read them.

        Raises DataError if they are not listed.
        """
        if self.content.get("reader") != reader:
            return []
        try:
            return [_broken(entry) for entry in self.content["left_out"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{self.root / INFO_FILE} does not list what was left out", hint=AGAIN) from error


@dataclass(frozen=True)
class IndexFile:
    """A file listed in the marker, with its stamp."""

    name: str
    size: int
    mtime_ns: int
    sha256: str

    def checked_in(self, root: Path) -> Path:
        """Its path. Size and time are compared first; the content only if these differ, as after a copy."""
        path = root / self.name
        try:
            if FileStamp(self.size, self.mtime_ns, self.sha256).fits(path):
                return path
        except FileNotFoundError as error:
            raise DataError(f"{path} does not exist", hint=AGAIN) from error
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})", hint=AGAIN) from error
        raise MismatchError(f"{path} is not the file that {INFO_FILE} beside it lists", hint=AGAIN)


def read_marker(root: Path) -> Marker:
    """Raises DataError if it is missing or broken, MismatchError if another version of cmpagl wrote it."""
    content = read_json(root / INFO_FILE)
    version = content.get("format_version") if isinstance(content, dict) else None
    check_format(root / INFO_FILE, version, INDEX_FORMAT, AGAIN, MismatchError)
    try:
        files = {key: IndexFile(**entry) for key, entry in content["files"].items()}
        sound = all(Path(file.name).name == file.name for file in files.values())
    except (KeyError, TypeError, AttributeError):
        sound, files = False, {}
    if not sound:
        raise DataError(f"{root / INFO_FILE} does not list its files", hint=AGAIN)
    return Marker(root, content, files)


def write_marker(
    root: Path, about: Mapping[str, Any], files: Mapping[str, IndexFile], reader: str, left_out: Sequence[Broken]
) -> None:
    """Write index.json, then remove files that it no longer lists. Raises CmpaglError if writing fails."""
    listed = [
        {**_named(one.image), "why": one.why, **(asdict(one.stamp) if one.stamp is not None else {})}
        for one in left_out
    ]
    named = {key: asdict(file) for key, file in files.items()}
    write_json(root / INFO_FILE, {**about, "made_at": now(), "files": named, "reader": reader, "left_out": listed})
    kept = {file.name for file in files.values()}
    for path in (*root.glob("*.safetensors"), *root.glob("*.faiss")):
        if path.name not in kept:
            path.unlink(missing_ok=True)


def renew_marker(marker: Marker) -> None:
    """Record that an index is up to date as of now. Raises CmpaglError if writing fails."""
    write_json(marker.root / INFO_FILE, {**marker.content, "made_at": now()})


def write_named(root: Path, stem: str, write: Callable[[Path], object], suffix: str = ".safetensors") -> IndexFile:
    """Write a file under a name with its hash in it. Raises CmpaglError if writing fails."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with partial_folder(root / stem) as folder:
            written = folder / stem
            write(written)
            stamp = stamp_file(written)
            name = f"{stem}-{stamp.sha256[:16]}{suffix}"
            written.replace(root / name)
    except OSError as error:
        raise CmpaglError(f"cannot write into {root} ({error.strerror or error})", hint="free disk space") from error
    return IndexFile(name, stamp.size, stamp.mtime_ns, stamp.sha256)


def _broken(entry: dict[str, Any]) -> Broken:
    stamp = FileStamp(entry["size"], entry["mtime_ns"], entry["sha256"]) if "sha256" in entry else None
    window = Window(**entry["window"]) if "window" in entry else None
    return Broken(ImageRef(entry["image_id"], Path(entry["path"]), window), str(entry["why"]), stamp)


def _named(image: ImageRef) -> dict[str, Any]:
    window = {} if image.window is None else {"window": asdict(image.window)}
    return {"image_id": image.image_id, "path": str(image.path), **window}
