"""Resolves encoder, images and name of a requested index, which `indexing.py` then builds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from cmpagl_core.datasets.augment import Tta
from cmpagl_core.datasets.prepared import PreparedDataset, open_prepared
from cmpagl_core.encoders.cmpagl import CmpaglEncoder
from cmpagl_core.encoders.encoder import Encoder
from cmpagl_core.encoders.prompts import chosen_templates
from cmpagl_core.encoders.published_models import Activation
from cmpagl_core.encoders.ray_engine import RayCluster, images_by_ray
from cmpagl_core.encoders.run_graph import UseOfOnnx
from cmpagl_core.errors import CmpaglError, DataError, UsageError
from cmpagl_core.files import newest
from cmpagl_core.imagery.images import PLAIN_SUFFIXES
from cmpagl_core.imagery.reading import DEFAULT, Reading
from cmpagl_core.imagery.tiles import Tiling
from cmpagl_core.run_data import own_data
from cmpagl_core.runs import Run, open_run
from cmpagl_core.search.fetch import REMOTE_FOLDER, fetch_images
from cmpagl_core.search.gallery_source import GallerySource, dataset_source
from cmpagl_core.search.index import IndexInfo, open_index
from cmpagl_core.search.indexing import BuiltIndex, build_index
from cmpagl_core.search.paths import path_source
from cmpagl_core.search.stac import ItemQuery
from cmpagl_core.search.store_files import StoreChoice
from cmpagl_core.session import Session
from cmpagl_core.workspace import MARKERS, Workspace

_MANY_IMAGES = 256
_LARGE_SCENE_BYTES = 16 << 20


@dataclass(frozen=True)
class IndexRequest:
    """What a user asks to be indexed, and with what; None where it is left to us.

    paths: see `path_source`; data: a prepared data set, the run's own or the newest if both are left out. run: the
    newest. model: in place of a run, see `open_clip_encoder`; activation, download: as in its ClipOptions. tta: as the
    index that is there was made, else as the recipe says. store: see StoreChoice; as that index, else exact. bands,
    stretch: see Reading; tile_px, tile_m, overlap: see Tiling; templates: see `chosen_templates`; as that index, else
    by each file. wait: for another process that is making the same index, rather than be refused.
    cluster: that encodes the images; None for this process. urls, items: in place of paths, see `fetch_images`.

    Raises UsageError for what contradicts itself.
    """

    paths: tuple[Path, ...] = ()
    data: str | None = None
    run: str | None = None
    model: str | None = None
    name: str | None = None
    tta: Tta | None = None
    activation: Activation | None = None
    download: bool = False
    store: str | None = None
    min_recall: float = 0.0
    bands: str | None = None
    stretch: str | None = None
    tile_px: int | None = None
    tile_m: float | None = None
    overlap: float | None = None
    templates: tuple[str, ...] | None = None
    wait: bool = False
    cluster: RayCluster | None = None
    urls: tuple[str, ...] = ()
    items: ItemQuery | None = None

    def __post_init__(self) -> None:
        if (self.paths or self.urls) and self.data is not None:
            raise UsageError("PATH and --data both give images", hint="give one of them")
        if self.paths and self.urls:
            raise UsageError("addresses and paths are not indexed together", hint="index each, then merge them")
        if self.items is not None and not self.urls:
            options = "--bbox, --from, --to, --collection, --asset and --most"
            raise UsageError(f"{options} choose images of an address", hint="name one, or leave them out")
        if self.model is not None and self.run is not None:
            raise UsageError("--model and --run both name a model", hint="give one of them")
        if self.model is not None and self.tta is not None:
            raise UsageError("--tta is for runs: an open_clip model sees each image as it is", hint="leave it out")
        if self.model is None and (self.activation is not None or self.download):
            raise UsageError("--activation and --download are for --model", hint="leave them out, or pass --model")
        read_as = (self.bands, self.stretch, self.tile_px, self.tile_m, self.overlap)
        if not (self.paths or self.urls) and any(value is not None for value in read_as):
            raise UsageError(
                "--bands, --stretch and tiles are for a folder: a data set's images were settled by `cmpagl prepare`",
                hint="name the folder, or leave them out",
            )


def make_index(session: Session, request: IndexRequest) -> BuiltIndex:
    """Build the index, or update it. Raises what `build_index`, `open_run` and `open_clip_encoder` raise."""
    workspace = session.workspace
    if request.urls:
        name = request.name or as_name(usual_name_of_url(request.urls[0]))
        folder = workspace.root / REMOTE_FOLDER / name
        fetched = fetch_images(request.urls, request.items or ItemQuery(), folder, session.progress)
        request = replace(request, urls=(), items=None, paths=(folder,), name=name)
        unfetched = fetched.left_out
    else:
        unfetched = ()
    request = _as_it_was_made(workspace, request)
    run = _run(workspace, request) if request.model is None else None
    source, usual = _source(workspace, request, run)
    root = workspace.folder("indexes", request.name or as_name(usual))
    before = _info_of(root)
    store = StoreChoice.parse(request.store or (before.store if before is not None else "exact"), request.min_recall)
    templates = chosen_templates(request.templates, request.model, before.templates if before is not None else "")
    source = replace(source, templates=templates, left_out=(*unfetched, *source.left_out))
    encoder = _encoder(session, request, run, root, source)
    images_by = None if request.cluster is None else images_by_ray(encoder, request.cluster, session)
    built = build_index(encoder, source, root, session.progress, request.wait, store, images_by=images_by)
    if built.encoded and isinstance(encoder, CmpaglEncoder):
        encoder.keep_graph()
    return built


def _run(workspace: Workspace, request: IndexRequest) -> Run:
    """The run whose model encodes. Raises DataError, naming the models that need no training, where there is none."""
    if request.run is None and request.paths and newest(workspace.root / "runs", MARKERS["runs"]) is None:
        raise DataError(
            f"there is no run in {workspace.root / 'runs'} to encode images with",
            hint="train one (`cmpagl train`), or search with a published model: --model remoteclip-b32, "
            "see `cmpagl models list`",
        )
    return open_run(workspace.find("runs", request.run))


def _as_it_was_made(workspace: Workspace, request: IndexRequest) -> IndexRequest:
    """With open_clip's model, where the index that is there was made with it and no other one is named."""
    usual = usual_name(request.paths) if request.paths else None
    name = request.name or usual
    if name is None or request.run is not None or request.model is not None:
        return request
    before = _info_of(workspace.folder("indexes", name))
    if before is None or before.model_kind != "open_clip":
        return request
    return replace(request, model=f"open_clip:{before.model_source}")


def _source(workspace: Workspace, request: IndexRequest, run: Run | None) -> tuple[GallerySource, str]:
    """The images, and the default name of their index. Data set: the named one, the run's own, or the newest."""
    if request.paths:
        usual = usual_name(request.paths)
        before = _info_of(workspace.folder("indexes", request.name or usual))
        return path_source(request.paths, _reading(request, before), _tiling(request, before)), usual
    if run is not None:
        prepared = own_data(workspace, run) if request.data is None else _data(workspace, request)
        own = prepared.name == run.info.dataset
        return dataset_source(prepared), run.root.name if own else f"{run.root.name}-{prepared.name}"
    prepared = _data(workspace, request)
    name, _, rest = (request.model or "").partition(":")
    model = Path(rest.partition(":")[0]).stem if name == "open_clip" else name
    return dataset_source(prepared), f"{model}-{prepared.name}"


def _reading(request: IndexRequest, before: IndexInfo | None) -> Reading:
    """As asked, else as the images of the index that is there were read."""
    old = DEFAULT if before is None else before.reading
    return Reading(request.bands or old.bands, request.stretch or old.stretch)


def _tiling(request: IndexRequest, before: IndexInfo | None) -> Tiling:
    old = Tiling() if before is None or before.kind == "dataset" else Tiling.parse(before.tiling)
    overlap = old.overlap if request.overlap is None else request.overlap
    if request.tile_px is None and request.tile_m is None:
        return replace(old, overlap=overlap)
    return Tiling(request.tile_px, request.tile_m, overlap)


def _data(workspace: Workspace, request: IndexRequest) -> PreparedDataset:
    return open_prepared(workspace.find("data", request.data))


def _encoder(session: Session, request: IndexRequest, run: Run | None, root: Path, source: GallerySource) -> Encoder:
    """The encoder, with the requested preprocessing, else that of the existing index."""
    before = _info_of(root)
    if run is None:
        from cmpagl_core.encoders.open_clip import ClipOptions, open_clip_encoder

        settled = before is not None and request.model == f"open_clip:{before.model_source}"
        options = ClipOptions(request.activation, session.workspace.models, request.download, settled)
        return open_clip_encoder(request.model or "", session.progress, session.device(), options)
    cache, onnx = session.workspace.cache, _use_of_onnx(source)
    encoder = CmpaglEncoder(run, session.progress, session.device(), cache, onnx=onnx)
    if request.tta is not None:
        return encoder.with_tta(request.tta)
    return encoder if before is None else encoder.preparing_as(before.preprocessing, before.precision)


def _use_of_onnx(source: GallerySource) -> UseOfOnnx:
    """Writing the image encoder for ONNX Runtime takes as long as some hundred images."""
    if len(source.entries) >= _MANY_IMAGES:
        return "write"
    others = (entry.image.path for entry in source.entries if entry.image.path.suffix.lower() not in PLAIN_SUFFIXES)
    with suppress(OSError):  # whoever reads it says why it cannot be read
        return "write" if any(path.stat().st_size >= _LARGE_SCENE_BYTES for path in others) else "kept"
    return "kept"


def _info_of(root: Path) -> IndexInfo | None:
    """The info of the existing index; None if there is none or it is unreadable."""
    try:
        return open_index(root).info
    except CmpaglError:
        return None


def usual_name(paths: Sequence[Path]) -> str:
    """The name of an index of some paths: the first one's, or its folder's where that is a pattern or a catalogue."""
    first = paths[0].absolute()
    named = first.parent if first.suffix == ".json" or "*" in first.name else first
    return as_name(named.stem if named.is_file() else named.name)


def usual_name_of_url(url: str) -> str:
    """The last word of an address's path, else its host."""
    parts = urlsplit(url)
    words = [word for word in parts.path.split("/") if word and "*" not in word]
    return Path(words[-1]).stem if words else parts.netloc


def as_name(text: str) -> str:
    """A folder's name as the name of an index, with invalid characters replaced by hyphens."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100] or "images"
