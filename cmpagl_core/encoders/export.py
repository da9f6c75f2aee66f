"""From a run and a split to a FeatureSet and its file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.device import usable_precision
from cmpagl_core.encoders.encode import encode_captions, encode_images, preprocessing
from cmpagl_core.encoders.feature_set import FeatureInfo, FeatureSet, save_feature_set
from cmpagl_core.progress import Progress
from cmpagl_core.runs import LoadedModel, Run


def export_features(
    run: Run,
    split: DataSplit,
    out: Path,
    progress: Progress,
    device: torch.device,
    manifest_sha256: str = "",
    overlap: str = "",
) -> FeatureSet:
    """Encode a split with a run's model and write the feature set to `out`. A re-run gives the same bytes.

    manifest_sha256: of the split's data set. overlap: as in FeatureInfo. Raises DataError for an unreadable image,
    MismatchError for weights that are not the run's, CmpaglError if writing fails.
    """
    features = run_features(run.load(device), run.root.name, split, progress, manifest_sha256)
    features = replace(features, info=replace(features.info, overlap=overlap))
    save_feature_set(out, features)
    return features


def run_features(
    loaded: LoadedModel, model: str, split: DataSplit, progress: Progress, manifest_sha256: str = ""
) -> FeatureSet:
    """Encode a split. model: the model's name in the feature set."""
    return FeatureSet(
        image_features=encode_images(loaded, split.images, progress),
        text_features=encode_captions(loaded, split.captions, progress),
        text_image=split.caption_image,
        image_ids=split.image_ids,
        image_sha256=split.image_sha256,
        paths=absolute_paths(split.paths),
        captions=split.captions,
        info=FeatureInfo(
            model=model,
            model_sha256=loaded.sha256,
            dataset=split.dataset,
            manifest_sha256=manifest_sha256,
            split=split.name,
            split_sha256=split.sha256,
            preprocessing=preprocessing(loaded.recipe),
            precision=usable_precision(loaded.device, loaded.recipe.train.precision),
        ),
    )


def absolute_paths(paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Paths that are still valid when the features are used from another folder."""
    return tuple(os.path.abspath(path) for path in paths)  # noqa: PTH100 - resolve() would follow links
