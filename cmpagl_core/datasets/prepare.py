"""`prepare`: from annotations and images in any known layout to one checked data set in the workspace."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from pathlib import Path

from cmpagl_core.datasets.locating import Located, locate_folder, locate_published, locate_synthetic
from cmpagl_core.datasets.manifest import IMAGES_FILE, MANIFEST_FILE, Manifest, read_manifest
from cmpagl_core.datasets.published import PUBLISHED
from cmpagl_core.datasets.request import PrepareRequest
from cmpagl_core.errors import CmpaglError, DataError
from cmpagl_core.files import FileStamp, canonical_json, sha256_file, sha256_text
from cmpagl_core.imagery.stamps import unchanged_files
from cmpagl_core.locks import hold
from cmpagl_core.progress import Progress
from cmpagl_core.workspace import Workspace

_WAY_OF_PREPARING = (
    1  # incremented when the same sources give another result, so that nothing stale counts as up to date
)


@dataclass(frozen=True)
class PrepareResult:
    """A prepared data set, and whether it already existed."""

    root: Path
    manifest: Manifest
    up_to_date: bool


def prepare(request: PrepareRequest, workspace: Workspace, progress: Progress) -> PrepareResult:
    """Prepare a data set, unless the same sources were already prepared in the same way.

    Raises DataError for missing or wrong sources (all problems are then listed in the data set's `problems.csv`),
    UsageError for a contradictory request, BusyError if another process is preparing a data set of that name,
    CmpaglError if writing fails.
    """
    root = workspace.folder("data", request.name or request.source)
    with hold(root, instead="choose another --name"):
        return _prepare(request, workspace, root, progress)


def _prepare(request: PrepareRequest, workspace: Workspace, root: Path, progress: Progress) -> PrepareResult:
    located = _locate(request, workspace, root, progress)
    fingerprint = _fingerprint(request, located)
    before = _up_to_date(root, fingerprint)
    if before is not None:
        try:
            workspace.select_data(root.name)  # other commands default to the data set that was prepared last
        except CmpaglError as error:  # a read-only workspace
            progress.say(f"{root.name} is up to date, but is not made the default: {error}")
        return PrepareResult(root, before, up_to_date=True)
    # imported here, so that an up-to-date data set does not wait half a second for pandas
    from cmpagl_core.datasets.building import build

    manifest = build(request, located, root, fingerprint, progress)
    workspace.select_data(root.name)
    return PrepareResult(root, manifest, up_to_date=False)


def _locate(request: PrepareRequest, workspace: Workspace, root: Path, progress: Progress) -> Located:
    if request.source == "synthetic":
        from cmpagl_core.synthetic.generate import DEFAULT_COUNT
        from cmpagl_core.synthetic.scene import DEFAULT_IMAGE_SIZE_PX

        count = DEFAULT_COUNT if request.count is None else request.count
        size = DEFAULT_IMAGE_SIZE_PX if request.image_size_px is None else request.image_size_px
        return locate_synthetic(count, request.seed, size, root, progress)
    if request.shards is not None:
        from cmpagl_core.datasets.shards import locate_shards

        return locate_shards(request.shards, root, progress)
    if request.folder is not None:
        return locate_folder(request.folder, request.annotations, root, progress)
    raw = workspace.root / "data" / "raw" / request.source
    return locate_published(PUBLISHED[request.source], raw, request.images, request.annotations, root, progress)


def _fingerprint(request: PrepareRequest, located: Located) -> str:
    """Hash of the request, the annotations' bytes and the images' names, sizes and times."""
    states = [(path.relative_to(located.images_root).as_posix(), path.stat()) for path in located.files]
    asked = {key: value for key, value in asdict(request).items() if not isinstance(value, Path)}
    content = {
        "way": _WAY_OF_PREPARING,
        "request": asked,
        "annotations": {str(path.resolve()): sha256_file(path) for path in located.annotations.files if path.is_file()},
        "images_root": str(located.images_root.resolve()),
        "images": [[name, state.st_size, state.st_mtime_ns] for name, state in states],
    }
    return sha256_text(canonical_json(content))


def _up_to_date(root: Path, fingerprint: str) -> Manifest | None:
    """The manifest in `root` if it was made from the same sources and all its files still exist."""
    if not (root / MANIFEST_FILE).is_file():
        return None
    try:
        manifest = read_manifest(root)
        if manifest.fingerprint != fingerprint:
            return None
        whole = all(sha256_file(root / file) == digest for file, digest in manifest.files.items())
        with (root / IMAGES_FILE).open(encoding="utf-8", newline="") as stream:
            is_unchanged = unchanged_files()
            whole = whole and all(is_unchanged(root / row["path"], _mark(row)) for row in csv.DictReader(stream))
    except (DataError, OSError, KeyError, ValueError, csv.Error):
        return None
    return manifest if whole else None


def _mark(row: dict[str, str]) -> FileStamp:
    return FileStamp(int(row["bytes"]), int(row["mtime_ns"]), row["sha256"])
