"""From a run and a split to the file of a FeatureSet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cmpagl_core.datasets.prepared import DataSplit
from cmpagl_core.encoders.feature_set import FeatureSet, save_feature_set
from cmpagl_core.encoders.split_encoder import SplitEncoder


def export_features(
    encoder: SplitEncoder, split: DataSplit, out: Path, manifest_sha256: str = "", overlap: str = ""
) -> FeatureSet:
    """Write the features of a split to `out`. A re-run gives the same bytes.

    manifest_sha256: of the split's data set. overlap: as in FeatureInfo. Raises DataError for an unreadable image,
    MismatchError for weights that are not the run's, CmpaglError if writing fails.
    """
    features = encoder.features(split, manifest_sha256)
    features = replace(features, info=replace(features.info, overlap=overlap))
    save_feature_set(out, features)
    return features
