"""Opens a gallery and its model as a Searcher, refusing any model other than the gallery's own.

Nothing here imports torch before a model is needed, or anything else that a text query does not need.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cmpagl_core.errors import CmpaglError, DataError, UsageError
from cmpagl_core.files import made_at, newest, read_json
from cmpagl_core.search.index import GalleryIndex, open_index
from cmpagl_core.search.joined import JoinedStore, join_indexes
from cmpagl_core.search.searcher import Searcher
from cmpagl_core.search.store_files import open_store
from cmpagl_core.session import Session
from cmpagl_core.workspace import MARKERS, Workspace

if TYPE_CHECKING:  # takes seconds to import, and a text query needs none of it
    from cmpagl_core.encoders.encoder import Encoder
    from cmpagl_core.encoders.image_graph import ImageGraph
    from cmpagl_core.encoders.text_tower import TextTower
    from cmpagl_core.runs import Run

_WEIGHTS = "model.safetensors"  # as runs.py has it, which a text query does not wait for


def open_searcher(
    session: Session, index: str | None = None, features: Path | None = None, run: str | None = None
) -> Searcher:
    """Open a feature set, a named index, or the newest one; if there is no index yet, build one.

    run: the run whose model made the gallery, instead of the one found. Raises DataError for a named gallery that does
    not exist or is broken, MismatchError for a run of another model.
    """
    gallery = _find_gallery(session.workspace, index, features)
    if gallery is None:
        from cmpagl_core.search.build import IndexRequest, make_index

        session.progress.say("there is no index yet: building one of all images of the run's data set")
        gallery = make_index(session, IndexRequest(run=run, wait=True)).index
    elif run is not None:
        _check_run(session.workspace.find("runs", run), gallery)
    elif index is None:
        _say_if_a_run_is_newer(gallery, session)
    find_tower = partial(_tower_of, gallery, session.workspace, run)
    find_graph = partial(_graph_of, gallery, session)
    return Searcher(gallery, partial(encoder_of, gallery, session, run), session.progress, find_tower, find_graph)


def open_joined(session: Session, names: Sequence[str]) -> Searcher:
    """Open several named indexes as one, without copying what they hold.

    Raises DataError for one that does not exist or is broken, MismatchError where their features cannot stand side by
    side.
    """
    indexes = [open_index(session.workspace.find("indexes", name)) for name in dict.fromkeys(names)]
    gallery = join_indexes(indexes)
    store = JoinedStore([open_store(index) for index in indexes], gallery.image_features, gallery.image_ids)
    find_graph = partial(_graph_of, gallery, session)
    searcher = Searcher(gallery, partial(encoder_of, gallery, session), session.progress, find_graph=find_graph)
    return searcher.searching(store)


def _find_gallery(workspace: Workspace, index: str | None, features: Path | None) -> GalleryIndex | None:
    """The requested gallery, or the newest; None if there is none yet."""
    if index is not None and features is not None:
        raise UsageError("--index and --features both choose a gallery", hint="give one of them")
    if features is not None:
        from cmpagl_core.encoders.feature_set import load_feature_set
        from cmpagl_core.search.feature_gallery import index_of_features

        return index_of_features(features, load_feature_set(features))
    if index is None and newest(workspace.root / "indexes", MARKERS["indexes"]) is None:
        return None
    return open_index(workspace.find("indexes", index))


def _say_if_a_run_is_newer(gallery: GalleryIndex, session: Session) -> None:
    """Note if the workspace's newest run is another model than the gallery's and was trained later."""
    latest = newest(session.workspace.root / "runs", MARKERS["runs"])
    if latest is None or gallery.info.model_kind != "run" or _model_of(latest) == gallery.info.model_sha256:
        return
    if made_at(latest / MARKERS["runs"]) > made_at(gallery.root / MARKERS["indexes"]):
        session.progress.say(
            f"index {gallery.info.name} was made with run {gallery.info.model}; run {latest.name} is newer: "
            f"`cmpagl index --run {latest.name}` indexes its data set"
        )


def encoder_of(gallery: GalleryIndex, session: Session, run: str | None = None) -> Encoder:
    """A gallery's encoder, rebuilt.

    Raises MismatchError if that model has changed, DataError if it is missing.
    """
    if gallery.info.model_kind == "open_clip":
        from cmpagl_core.encoders.feature_set import require_same_model
        from cmpagl_core.encoders.open_clip import ClipOptions, open_clip_encoder

        spec = f"open_clip:{gallery.info.model_source}"
        encoder = open_clip_encoder(spec, session.progress, session.device(), ClipOptions(as_indexed=True))
        found = encoder.fingerprint.model_sha256
        require_same_model(gallery.info.model_sha256, found, str(gallery.root), encoder.name)
        return encoder
    from cmpagl_core.encoders.cmpagl import CmpaglEncoder

    maker = run_of(gallery, session.workspace, run)
    made = CmpaglEncoder(maker, session.progress, session.device(), onnx="never")
    return made.preparing_as(gallery.info.preprocessing)


def _graph_of(gallery: GalleryIndex, session: Session) -> ImageGraph | None:
    """The image encoder of a gallery's run, if the workspace keeps it for ONNX Runtime and that is installed."""
    from cmpagl_core.encoders.image_graph import ImageGraph, graph_path, runtime_is_installed

    path = graph_path(session.workspace.cache, gallery.info.model_sha256)
    if gallery.info.model_kind != "run" or not path.is_file() or not runtime_is_installed():
        return None
    try:
        return ImageGraph(path, gallery.info.model_sha256)
    except DataError as error:
        session.progress.say(f"not used: {error}")
        return None


def _tower_of(gallery: GalleryIndex, workspace: Workspace, run: str | None) -> TextTower | None:
    """The text encoder of the run that exported a gallery's features; None for other galleries."""
    if gallery.info.kind != "features":
        return None
    from cmpagl_core.encoders.text_tower import run_text_tower

    return run_text_tower(run_of(gallery, workspace, run))


def run_of(gallery: GalleryIndex, workspace: Workspace, run: str | None) -> Run:
    """The run whose model made the gallery: the named one, else the recorded one, else any in the workspace.

    Raises MismatchError if it is another model, DataError if there is no run.
    """
    from cmpagl_core.runs import open_run

    if run is not None:
        return _check_run(workspace.find("runs", run), gallery)
    remembered = Path(gallery.info.model_source) if gallery.info.model_kind == "run" else None
    folders = [path.parent for path in sorted((workspace.root / "runs").glob(f"*/{MARKERS['runs']}"))]
    for folder in [*([remembered] if remembered is not None else []), *folders]:
        if _model_of(folder) == gallery.info.model_sha256:
            return open_run(folder)
    if remembered is not None and (remembered / MARKERS["runs"]).is_file():
        return _check_run(remembered, gallery)
    return _check_run(workspace.find("runs"), gallery)


def _check_run(folder: Path, gallery: GalleryIndex) -> Run:
    from cmpagl_core.encoders.feature_set import require_same_model
    from cmpagl_core.runs import open_run

    run = open_run(folder)
    require_same_model(gallery.info.model_sha256, run.info.weights_sha256, str(gallery.root), f"run {folder.name}")
    return run


def _model_of(folder: Path) -> str:
    """The model of a run folder, read without opening the run; "" if unknown."""
    try:
        content = read_json(folder / MARKERS["runs"])
    except CmpaglError:
        return ""
    try:
        return str(content["files"][_WEIGHTS]["sha256"])
    except (KeyError, TypeError):
        return ""
