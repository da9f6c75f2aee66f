"""The ONNX file of a run's image encoder in a workspace's cache: opened, or written at first need (ours)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cmpagl_core.encoders.image_graph import GraphInfo, ImageGraph, graph_path, runtime_is_installed
from cmpagl_core.errors import CmpaglError, DataError, UsageError
from cmpagl_core.files import write_bytes
from cmpagl_core.locks import hold
from cmpagl_core.progress import Progress
from cmpagl_core.recipe import Recipe
from cmpagl_core.runs import LoadedModel, Run

if TYPE_CHECKING:  # torch, which a kept graph does without
    from cmpagl_core.encoders.onnx_export import Parity


UseOfOnnx = Literal["never", "kept", "write"]


def has_frozen_backbone(recipe: Recipe) -> bool:
    """Whether a run of this recipe leaves its backbone as it was, so that maps are rounded as in a cache."""
    cfg = recipe.image_encoder
    return cfg.backbone != "none" and (not cfg.backbone_trainable or recipe.optim.image_lr_scale == 0)


def graph_info(run: Run) -> GraphInfo:
    """What the graph of a run computes."""
    return GraphInfo(run.info.weights_sha256, run.recipe.data.image_size_px, has_frozen_backbone(run.recipe))


@dataclass(frozen=True)
class WrittenGraph:
    """A graph that a user asked for, and how far its features are from torch's."""

    path: Path
    info: GraphInfo
    parity: Parity


def export_graph(run: Run, out: Path, cache_root: Path, progress: Progress) -> WrittenGraph:
    """Write a run's graph to `out`, and into a workspace's cache.

    Raises UsageError where a package is missing, and what `export_image_encoder` raises.
    """
    if not runtime_is_installed() or not exporter_is_installed():
        raise UsageError("ONNX needs the packages onnx and onnxruntime", hint="pip install 'cmpagl[fast]'")
    parity = _write(run, run.load(), out)
    kept = graph_path(cache_root, run.info.weights_sha256)
    if not kept.is_file():
        write_bytes(kept, out.read_bytes())
        progress.say(f"`index` and `retrieve --image` use it from now on: {kept}")
    return WrittenGraph(out, graph_info(run), parity)


def kept_graph(run: Run, cache_root: Path, progress: Progress) -> ImageGraph | None:
    """The graph of a run, if the cache has it, it is sound and ONNX Runtime is installed."""
    path = graph_path(cache_root, run.info.weights_sha256)
    if not runtime_is_installed() or not path.is_file():
        return None
    try:
        graph = ImageGraph(path, run.info.weights_sha256)
        if graph.info != graph_info(run):
            raise DataError(f"{path} was made for other images")
    except DataError as error:
        progress.say(f"not used: {error}")
        return None
    return graph


def run_graph(run: Run, load: Callable[[], LoadedModel], cache_root: Path, progress: Progress) -> ImageGraph | None:
    """The graph of a run, written if the cache lacks it; None, said if it is a failure, where torch has to do."""
    found = kept_graph(run, cache_root, progress)
    if found is not None or not runtime_is_installed() or not exporter_is_installed():
        return found
    path = graph_path(cache_root, run.info.weights_sha256)
    try:
        with hold(path, progress.say):
            progress.say(f"writing the image encoder of run {run.root.name} for ONNX Runtime, once")
            _write(run, load(), path)
    except CmpaglError as error:
        progress.say(f"images are encoded by torch: {error}")
        return None
    return kept_graph(run, cache_root, progress)


def exporter_is_installed() -> bool:
    """Whether a graph can be written."""
    return find_spec("onnx") is not None


def _write(run: Run, loaded: LoadedModel, path: Path) -> Parity:
    from cmpagl_core.encoders.onnx_export import export_image_encoder

    return export_image_encoder(loaded, graph_info(run), path)
