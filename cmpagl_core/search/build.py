"""Which encoder, which images and which name are meant when an index is asked for; `indexing.py` then makes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cmpagl_core.datasets.prepared import PreparedDataset, open_prepared
from cmpagl_core.datasets.views import Views
from cmpagl_core.encoders.cmpagl import CmpaglEncoder
from cmpagl_core.encoders.encoder import Encoder
from cmpagl_core.errors import CmpaglError, UsageError
from cmpagl_core.progress import Progress
from cmpagl_core.run_data import own_data
from cmpagl_core.runs import Run, open_run
from cmpagl_core.search.index import IndexInfo, open_index
from cmpagl_core.search.indexing import BuiltIndex, build_index
from cmpagl_core.search.listing import GallerySource, dataset_source, folder_source
from cmpagl_core.workspace import Workspace


@dataclass(frozen=True)
class IndexRequest:
    """What a user asks to be indexed, and with what; None where it is left to us.

    folder: of images; data: a prepared data set, the run's own or the newest if both are None. run: the newest.
    model: open_clip:NAME:CHECKPOINT in place of a run. views: as the index that is there was made, else as the recipe
    says. wait: for another process that is making the same index, rather than be refused.
    Raises UsageError for what contradicts itself.
    """

    folder: Path | None = None
    data: str | None = None
    run: str | None = None
    model: str | None = None
    name: str | None = None
    views: Views | None = None
    wait: bool = False

    def __post_init__(self) -> None:
        if self.folder is not None and self.data is not None:
            raise UsageError("DIR and --data both name pictures", hint="give one of them")
        if self.model is not None and self.run is not None:
            raise UsageError("--model and --run both name a model", hint="give one of them")
        if self.model is not None and self.views is not None:
            raise UsageError("--views is for runs: an open_clip model sees each picture as it is", hint="leave it out")


def make_index(
    request: IndexRequest, workspace: Workspace, progress: Progress, device: Callable[[], torch.device]
) -> BuiltIndex:
    """Make the index, or bring it up to date. Raises what `build_index` and `open_run` raise."""
    run = open_run(workspace.find("runs", request.run)) if request.model is None and request.folder is None else None
    source, usual = _source(request, workspace, run)
    root = workspace.folder("indexes", request.name or _as_name(usual))
    encoder = _encoder(request, workspace, progress, device, _info_of(root))
    return build_index(encoder, source, root, progress, request.wait)


def _source(request: IndexRequest, workspace: Workspace, run: Run | None) -> tuple[GallerySource, str]:
    """The images, and the usual name of an index of them."""
    if request.folder is not None:
        source = folder_source(request.folder)
        return source, Path(source.source).name
    prepared = _data(request, workspace, run)
    if run is None:
        model = (request.model or "").split(":")[1:2]
        return dataset_source(prepared), "-".join([*model, prepared.name])
    own = prepared.name == run.info.dataset
    return dataset_source(prepared), run.root.name if own else f"{run.root.name}-{prepared.name}"


def _data(request: IndexRequest, workspace: Workspace, run: Run | None) -> PreparedDataset:
    """The data set that is named, else the run's own; else, without a run, the newest."""
    if request.data is None and run is not None:
        return own_data(workspace, run)
    return open_prepared(workspace.find("data", request.data))


def _encoder(
    request: IndexRequest,
    workspace: Workspace,
    progress: Progress,
    device: Callable[[], torch.device],
    before: IndexInfo | None,
) -> Encoder:
    """The encoder that is named; else open_clip's, where the index that is there was made with it; else a run's."""
    remembered = before is not None and before.model_kind == "open_clip" and request.run is None
    model = request.model or (f"open_clip:{before.model_source}" if before is not None and remembered else None)
    if model is not None:
        from cmpagl_core.encoders.open_clip import open_clip_encoder

        return open_clip_encoder(model, progress, device())
    run = open_run(workspace.find("runs", request.run))
    encoder = CmpaglEncoder(run, progress, device(), workspace.cache)
    if request.views is not None:
        return encoder.in_views(request.views)
    return encoder if before is None else encoder.preparing_as(before.preprocessing)


def _info_of(root: Path) -> IndexInfo | None:
    """Of the index that is there; None where there is none yet, or none that can be read."""
    try:
        return open_index(root).info
    except CmpaglError:
        return None


def _as_name(text: str) -> str:
    """A folder's name as the name of an index: what the workspace does not allow becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100] or "pictures"
