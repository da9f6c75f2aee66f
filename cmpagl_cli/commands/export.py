"""`cmpagl export`: a split's features as one safetensors file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cmpagl_cli.commands.options import (
    ActivationOption,
    AddressOption,
    DownloadOption,
    EngineOption,
    FormatOption,
    ModelOption,
    OutOption,
    OutputFormat,
    RunOption,
    Settings,
    TemplateOption,
    TestedDataOption,
    WorkerCpusOption,
    WorkersOption,
    ray_cluster,
    settings,
)
from cmpagl_cli.views import Column, emit

if TYPE_CHECKING:
    from cmpagl_core.datasets.prepared import PreparedDataset
    from cmpagl_core.encoders.encoder import EncodesImages
    from cmpagl_core.encoders.feature_set import FeatureSet
    from cmpagl_core.encoders.open_clip import ClipOptions
    from cmpagl_core.encoders.ray_engine import RayCluster
    from cmpagl_core.evaluation.score_files import ScoresInfo
    from cmpagl_core.runs import Run


def export(
    ctx: typer.Context,
    split: Annotated[Literal["train", "val", "test", "all"], typer.Option("--split", help="Split to export.")] = "test",
    out: OutOption = None,
    run: RunOption = None,
    data: TestedDataOption = None,
    model: ModelOption = None,
    activation: ActivationOption = None,
    download: DownloadOption = False,
    template: TemplateOption = None,
    scores: Annotated[
        bool,
        typer.Option("--scores", help="Write a score matrix of images x captions (.npy) instead of features."),
    ] = False,
    onnx: Annotated[
        bool,
        typer.Option("--onnx", help="Write the run's image encoder as an ONNX file instead (extra `fast`)."),
    ] = False,
    engine: EngineOption = "local",
    address: AddressOption = None,
    workers: WorkersOption = None,
    worker_cpus: WorkerCpusOption = None,
    format: FormatOption = "table",
) -> None:
    """Write the image and text features of a split to one safetensors file; a re-run gives the same bytes.

    --scores writes the score matrix of the plain ranking instead, with a file NAME.npy.json that tells
    `cmpagl evaluate --choose-on` its split. --model evaluates a published remote-sensing model or any open_clip model
    under the same protocol.

    --onnx writes the image encoder for other programs, and for `index` and `retrieve --image` in this workspace, which
    are faster with it where ONNX Runtime is installed. Its features are compared with torch's first.

    With --engine ray, workers of a Ray cluster encode the images; they need the same files at the same places.

    Examples:
      cmpagl export --split test --out ucm.safetensors
      cmpagl export --split all --run ucm-cpu --data ucm
      cmpagl export --scores --split val --out V.npy
      cmpagl export --model remoteclip-b32:RemoteCLIP-ViT-B-32.pt --data rsicd --out remoteclip.safetensors
      cmpagl export --onnx --run ucm-cpu --out ucm-cpu.onnx
      cmpagl export --split all --engine ray --address head:6379
    """
    from cmpagl_core.errors import UsageError

    given = settings(ctx)
    cluster = ray_cluster(engine, address, workers, worker_cpus)
    if cluster is not None and (onnx or scores):
        raise UsageError("--engine ray encodes features", hint="leave out --onnx and --scores")
    if onnx:
        if scores or data is not None or model is not None or template:
            raise UsageError("--onnx writes a run's image encoder", hint="leave out --data, --model and --scores")
        _show_onnx(given, run, out, format)
        return
    if model is not None and run is not None:
        raise UsageError("--model and --run both name a model", hint="give one of them")
    if scores:
        _show_scores(*_scores_of_run(given, model, run, data, split, out), format)
        return
    if model is None:
        if activation is not None or download or template:
            raise UsageError(
                "--activation, --template and --download are for --model", hint="leave them out, or name a model"
            )
        features, path = _of_run(given, run, data, split, out, cluster)
    else:
        from cmpagl_core.encoders.open_clip import ClipOptions

        options = ClipOptions(activation, given.workspace.models, download)
        features, path = _of_foreign(given, model, options, data, split, out, template, cluster)
    info = features.info
    row = {
        "file": str(path),
        "model": info.model,
        "dataset": info.dataset,
        "split": info.split,
        "images": len(features.image_ids),
        "captions": len(features.captions),
        "dim": features.dim,
        "model_sha256": info.model_sha256,
        "split_sha256": info.split_sha256,
    }
    keys = [key for key in row if format != "table" or not key.endswith("sha256")]
    emit([row], [Column(key) for key in keys], format)


def _show_onnx(given: Settings, run: str | None, out: Path | None, format: OutputFormat) -> None:
    from cmpagl_core.encoders.run_graph import export_graph
    from cmpagl_core.runs import open_run

    found = open_run(given.workspace.find("runs", run))
    written = export_graph(found, out or Path(f"{found.root.name}.onnx"), given.workspace.cache, given.progress)
    row = {
        "file": str(written.path),
        "model": found.root.name,
        "image_size_px": written.info.image_size_px,
        "dim": found.recipe.losses.embed_dim,
        "largest_difference": written.parity.largest_difference,
        "smallest_cosine": written.parity.smallest_cosine,
        "model_sha256": written.info.model_sha256,
    }
    keys = [key for key in row if format != "table" or not key.endswith("sha256")]
    emit([row], [Column(key) for key in keys], format)


def _scores_of_run(
    given: Settings, model: str | None, run: str | None, data: str | None, split: str, out: Path | None
) -> tuple[ScoresInfo, Path]:
    from cmpagl_core.errors import UsageError
    from cmpagl_core.evaluation.evaluate import export_scores
    from cmpagl_core.run_data import EvalSplit

    if model is not None:
        raise UsageError("--scores needs a run", hint="export the features of a foreign model instead")
    found, prepared = _run_and_data(given, run, data)
    path = out or Path(f"{found.root.name}-{prepared.name}-{split}.npy")
    tested = EvalSplit(prepared.split(split), prepared.manifest.sha256)
    return export_scores(given.session, found, tested, path), path


def _show_scores(info: ScoresInfo, path: Path, format: OutputFormat) -> None:
    row = {"file": str(path), **asdict(info)}
    shown = ("file", "model", "dataset", "split", "base") if format == "table" else tuple(row)
    emit([row], [Column(key) for key in shown], format)


def _run_and_data(given: Settings, run: str | None, data: str | None) -> tuple[Run, PreparedDataset]:
    """The run, and the named data set or the run's own."""
    from cmpagl_core.run_data import own_data
    from cmpagl_core.runs import open_run

    found = open_run(given.workspace.find("runs", run))
    return found, own_data(given.workspace, found) if data is None else _data(given, data)


def _of_run(
    given: Settings, run: str | None, data: str | None, split: str, out: Path | None, cluster: RayCluster | None
) -> tuple[FeatureSet, Path]:
    from cmpagl_core.encoders.export import export_features
    from cmpagl_core.encoders.split_encoder import SplitEncoder
    from cmpagl_core.evaluation.evaluate import shared_with_training
    from cmpagl_core.evaluation.protocol import written_overlap

    found, prepared = _run_and_data(given, run, data)
    path = out or Path(f"{found.root.name}-{prepared.name}-{split}.safetensors")
    chosen = prepared.split(split)
    shared = shared_with_training(found, chosen)
    for sentence in () if shared is None else shared.sentences(found.root.name):
        given.progress.say(sentence)
    manifest, overlap = prepared.manifest.sha256, written_overlap(shared)
    images_by = None if cluster is None else _images_by_ray(given, found, cluster)
    return export_features(SplitEncoder(found, given.session, images_by), chosen, path, manifest, overlap), path


def _images_by_ray(given: Settings, run: Run, cluster: RayCluster) -> EncodesImages:
    from cmpagl_core.encoders.cmpagl import CmpaglEncoder
    from cmpagl_core.encoders.ray_engine import images_by_ray

    encoder = CmpaglEncoder(run, given.progress, given.compute_device(), rounded=False)
    return images_by_ray(encoder, cluster, given.session)


def _of_foreign(
    given: Settings,
    model: str,
    options: ClipOptions,
    data: str | None,
    split: str,
    out: Path | None,
    template: list[str] | None,
    cluster: RayCluster | None,
) -> tuple[FeatureSet, Path]:
    from cmpagl_core.encoders.feature_set import save_feature_set
    from cmpagl_core.encoders.open_clip import encoder_features, open_clip_encoder
    from cmpagl_core.encoders.prompts import chosen_templates
    from cmpagl_core.encoders.ray_engine import images_by_ray

    templates = chosen_templates(template, model)
    prepared = _data(given, data)
    chosen = prepared.split(split)
    encoder = open_clip_encoder(model, given.progress, given.compute_device(), options)
    path = out or Path(f"{encoder.name.replace(':', '-')}-{prepared.name}-{split}.safetensors")
    images_by = None if cluster is None else images_by_ray(encoder, cluster, given.session)
    features = encoder_features(encoder, chosen, given.progress, prepared.manifest.sha256, templates, images_by)
    save_feature_set(path, features)
    return features, path


def _data(given: Settings, data: str | None) -> PreparedDataset:
    """The named data set, else the selected one."""
    from cmpagl_core.datasets.prepared import open_prepared

    return open_prepared(given.workspace.find("data", data))
