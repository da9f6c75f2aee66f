"""`cmpagl export`: a split's features as one safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cmpagl_cli.commands.options import DataOption, FormatOption, ModelOption, OutOption, RunOption, Settings, settings
from cmpagl_cli.views import Column, emit

if TYPE_CHECKING:
    from cmpagl_core.datasets.prepared import PreparedDataset
    from cmpagl_core.encoders.feature_set import FeatureSet


def export(
    ctx: typer.Context,
    split: Annotated[Literal["train", "val", "test", "all"], typer.Option("--split", help="Which pictures.")] = "test",
    out: OutOption = None,
    run: RunOption = None,
    data: DataOption = None,
    model: ModelOption = None,
    format: FormatOption = "table",
) -> None:
    """Write the image and text features of a split to one safetensors file; a re-run gives the same bytes.

    A foreign model is any that open_clip knows, with a local checkpoint, or a tag of one that open_clip then fetches.

    Examples:
      cmpagl export --split test --out ucm.safetensors
      cmpagl export --split all --run ucm-cpu --data ucm
      cmpagl export --model open_clip:ViT-B-32:RemoteCLIP-ViT-B-32.pt --data rsicd --out remoteclip.safetensors
    """
    from cmpagl_core.errors import UsageError

    given = settings(ctx)
    if model is not None and run is not None:
        raise UsageError("--model and --run both name a model", hint="give one of them")
    if model is None:
        features, path = _of_run(given, run, data, split, out)
    else:
        features, path = _of_foreign(given, model, data, split, out)
    info = features.info
    row = {
        "file": str(path),
        "model": info.model,
        "dataset": info.dataset,
        "split": info.split,
        "pictures": len(features.image_ids),
        "captions": len(features.captions),
        "dim": features.dim,
        "model_sha256": info.model_sha256,
        "split_sha256": info.split_sha256,
    }
    keys = [key for key in row if format != "table" or not key.endswith("sha256")]
    emit([row], [Column(key) for key in keys], format)


def _of_run(
    given: Settings, run: str | None, data: str | None, split: str, out: Path | None
) -> tuple[FeatureSet, Path]:
    from cmpagl_core.encoders.export import export_features
    from cmpagl_core.evaluation.protocol import written_overlap
    from cmpagl_core.evaluation.selection import shared_with_training
    from cmpagl_core.runs import open_run

    found = open_run(given.workspace.find("runs", run))
    prepared = _data(given, data, found.info.dataset_root, found.info.dataset)
    path = out or Path(f"{found.root.name}-{prepared.name}-{split}.safetensors")
    chosen = prepared.split(split)
    shared = shared_with_training(given.workspace, found, prepared, split)
    if shared is not None:
        given.progress.say(f"{found.root.name} was {shared.sentence()}")
    manifest, overlap = prepared.manifest.sha256, written_overlap(shared)
    return export_features(found, chosen, path, given.progress, given.compute_device(), manifest, overlap), path


def _of_foreign(given: Settings, model: str, data: str | None, split: str, out: Path | None) -> tuple[FeatureSet, Path]:
    from cmpagl_core.encoders.feature_set import save_feature_set
    from cmpagl_core.encoders.open_clip import encoder_features, open_clip_encoder

    prepared = _data(given, data, "", None)
    chosen = prepared.split(split)
    encoder = open_clip_encoder(model, given.progress, given.compute_device())
    path = out or Path(f"{encoder.name.replace(':', '-')}-{prepared.name}-{split}.safetensors")
    features = encoder_features(encoder, chosen, given.progress, prepared.manifest.sha256)
    save_feature_set(path, features)
    return features, path


def _data(given: Settings, data: str | None, remembered: str, name: str | None) -> PreparedDataset:
    """The data set that is named, else the run's own where it was, else by its name, else the newest."""
    from cmpagl_core.datasets.prepared import open_prepared

    if data is None and remembered and (Path(remembered) / "manifest.json").is_file():
        return open_prepared(Path(remembered))
    return open_prepared(given.workspace.find("data", data or name))
