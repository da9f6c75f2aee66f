"""Memory while evaluating 5,000 images x 25,000 texts with every re-ranking, above the features themselves."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import numpy as np
import torch
from _measure import report

from cmpagl_core.encoders.feature_set import FeatureInfo, FeatureSet
from cmpagl_core.evaluation.evaluate import EvaluateOptions, feature_scores
from cmpagl_core.ranking.rerank import ChosenParams, Gammas, RerankParams

IMAGES, CAPTIONS, WIDTH = 5_000, 5, 256
GIB = 2**30
TUNED = ChosenParams({"cosine": RerankParams(Gammas("multiply", 1.0, 4.0), 20.0, 20.0)})


def random_features(images: int) -> FeatureSet:
    """Unit rows; texts lean towards their image."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(images), CAPTIONS)
    left = rng.standard_normal((images, WIDTH), dtype=np.float32)
    right = 0.15 * left[owner] + rng.standard_normal((len(owner), WIDTH), dtype=np.float32)
    ids = tuple(f"image {row}" for row in range(images))
    return FeatureSet(
        left / np.linalg.norm(left, axis=1, keepdims=True),
        right / np.linalg.norm(right, axis=1, keepdims=True),
        owner.astype(np.int64),
        ids,
        ("0" * 64,) * images,
        ids,
        tuple(f"caption {row}" for row in range(len(owner))),
        FeatureInfo("random", "", "random", "", "test", "", "", "fp32"),
    )


def resident_bytes(key: str) -> int:
    """VmRSS (now) or VmHWM (the most so far) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not say {key}")


def peak_above_features(images: int = IMAGES) -> float:
    """Bytes that evaluation needed at its peak above what was resident with the features loaded."""
    feature_scores(random_features(50), TUNED).report(EvaluateOptions(rerank="all"))  # libraries loaded, pools made
    features = random_features(images)
    start = resident_bytes("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        feature_scores(features, TUNED).report(EvaluateOptions(rerank="all"))
        return float(resident_bytes("VmHWM") - start)
    except PermissionError:
        feature_scores(features, TUNED).report(EvaluateOptions(rerank="all"))
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start)


def main() -> int:
    torch.set_num_threads(2)
    name = f"memory while evaluating {IMAGES:,} x {IMAGES * CAPTIONS:,}, every re-ranking, above the features"
    return 0 if report(name, peak_above_features() / GIB, "GiB", 1.0) else 1


if __name__ == "__main__":
    sys.exit(main())
