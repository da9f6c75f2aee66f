"""From a question to the features that a gallery can be searched with, refusing any model but the gallery's own.

A text needs the index's text tower alone; a picture, or features without a tower, needs the run and therefore torch,
which is imported only then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmpagl_core.encoders.encoder import Encoder, Features, collect
from cmpagl_core.encoders.feature_set import load_feature_set, require_same_model
from cmpagl_core.encoders.text_tower import TextTower, open_text_tower
from cmpagl_core.errors import CmpaglError, DataError, UsageError
from cmpagl_core.files import newest, read_json
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.progress import Progress
from cmpagl_core.search.index import GalleryIndex, index_of_features, open_index, places
from cmpagl_core.search.search import top_k
from cmpagl_core.workspace import MARKERS, Workspace

if TYPE_CHECKING:  # torch is needed for pictures only, and takes seconds to import
    import torch

    from cmpagl_core.runs import Run

_MAX_CHARACTERS = 100_000


@dataclass(frozen=True)
class CaptionHit:
    """One caption found for a picture, and the ids of the pictures it was written for."""

    rank: int
    caption: str
    score: float
    image_ids: tuple[str, ...]


def find_gallery(workspace: Workspace, index: str | None, features: Path | None) -> GalleryIndex | None:
    """The gallery that is meant: a feature set, a named index, or the newest one; None when there is none yet.

    Raises DataError for one that is named and is not there, or is broken.
    """
    if index is not None and features is not None:
        raise UsageError("--index and --features both name a gallery", hint="give one of them")
    if features is not None:
        return index_of_features(features, load_feature_set(features))
    if index is None and newest(workspace.root / "indexes", MARKERS["indexes"]) is None:
        return None
    return open_index(workspace.find("indexes", index))


def text_features(
    text: str, gallery: GalleryIndex, workspace: Workspace, run: str | None, progress: Progress
) -> Features:
    """The features [D] of a query text. Raises UsageError for a blank one, MismatchError for another model's run."""
    if not text.strip():
        raise UsageError("the query is blank", hint='say what to look for, as in `cmpagl retrieve "airport near sea"`')
    if len(text) > _MAX_CHARACTERS:
        text = text[:_MAX_CHARACTERS]
    if run is not None:
        _check_run(workspace.find("runs", run), gallery)
    tower = _tower_of(gallery)
    if tower is not None:
        _say_how_it_reads(tower, text, progress)
        return np.asarray(tower.encode([text])[0])
    return np.asarray(encoder_of(gallery, workspace, run, progress).encode_texts([text])[0])


def image_features(
    path: Path,
    gallery: GalleryIndex,
    workspace: Workspace,
    run: str | None,
    progress: Progress,
    device: Callable[[], torch.device],
) -> Features:
    """The features [D] of a query image. Raises DataError for a broken one, MismatchError for another model's run."""
    if not path.is_file():
        raise DataError(f"picture {path} does not exist")
    encoder = encoder_of(gallery, workspace, run, progress, device)
    return np.asarray(collect(encoder.encode_images([ImageRef(path.name, path)]), 1, progress)[0])


def encoder_of(
    gallery: GalleryIndex,
    workspace: Workspace,
    run: str | None,
    progress: Progress,
    device: Callable[[], torch.device] | None = None,
) -> Encoder:
    """The encoder that made a gallery, made again; on the CPU when device is None.

    Raises MismatchError when that is another model now, DataError when it is gone.
    """
    if gallery.info.model_kind == "open_clip" and run is None:
        return _open_clip_of(gallery, progress, device)
    found = run_of(gallery, workspace, run)
    from cmpagl_core.encoders.cmpagl import CmpaglEncoder

    encoder = CmpaglEncoder(found, progress, None if device is None else device())
    return encoder.preparing_as(gallery.info.preprocessing)


def run_of(gallery: GalleryIndex, workspace: Workspace, run: str | None) -> Run:
    """The run whose model made the gallery: the one named, else the one it remembers, else any in the workspace.

    Raises MismatchError when that is another model, DataError when there is no run.
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


def search_captions(gallery: GalleryIndex, query: Features, k: int) -> list[CaptionHit]:
    """The k captions of the gallery nearest to a query [D]. Raises DataError when the gallery has no captions."""
    if not len(gallery.captions):
        raise DataError(f"gallery {gallery.info.name} has no captions", hint="index a data set with captions")
    best = top_k(gallery.text_features, query[None], k, places(gallery.captions))
    return [
        CaptionHit(rank, gallery.captions[text], score, gallery.images_of(text))
        for rank, (score, text) in enumerate(zip(best.scores[0].tolist(), best.rows[0].tolist(), strict=True), start=1)
    ]


def newer_run(gallery: GalleryIndex, workspace: Workspace) -> Path | None:
    """The newest run of the workspace if it is another model than the gallery's and was trained after it."""
    latest = newest(workspace.root / "runs", MARKERS["runs"])
    if latest is None or gallery.info.model_kind != "run" or _model_of(latest) == gallery.info.model_sha256:
        return None
    made = (gallery.root / MARKERS["indexes"]).stat().st_mtime_ns
    return latest if (latest / MARKERS["runs"]).stat().st_mtime_ns > made else None


def _tower_of(gallery: GalleryIndex) -> TextTower | None:
    if gallery.tower is None:
        return None
    tower = open_text_tower(gallery.tower)
    return tower if tower.info.model_sha256 == gallery.info.model_sha256 else None


def _say_how_it_reads(tower: TextTower, text: str, progress: Progress) -> None:
    reading = tower.read(text)
    if reading.cut:
        progress.say(f"the query is long: the model reads its first {tower.info.max_tokens} tokens")
    if reading.known == 0:
        progress.say("no word of the query is known to the model, so the order says little")


def _open_clip_of(gallery: GalleryIndex, progress: Progress, device: Callable[[], torch.device] | None) -> Encoder:
    import torch

    from cmpagl_core.encoders.open_clip import open_clip_encoder

    computed_on = torch.device("cpu") if device is None else device()
    encoder = open_clip_encoder(f"open_clip:{gallery.info.model_source}", progress, computed_on, may_fetch=False)
    found = encoder.fingerprint.model_sha256
    require_same_model(gallery.info.model_sha256, found, str(gallery.root), encoder.name)
    return encoder


def _check_run(folder: Path, gallery: GalleryIndex) -> Run:
    from cmpagl_core.runs import open_run

    run = open_run(folder)
    require_same_model(gallery.info.model_sha256, run.info.weights_sha256, str(gallery.root), f"run {folder.name}")
    return run


def _model_of(folder: Path) -> str:
    """The model of a run folder, read without the cost of opening it; "" when it cannot be told."""
    try:
        content = read_json(folder / MARKERS["runs"])
    except CmpaglError:
        return ""
    return str(content.get("weights_sha256", "")) if isinstance(content, dict) else ""
