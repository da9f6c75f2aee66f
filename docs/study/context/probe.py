"""Linear-probe accuracy on UCM's scene classes: distilled Gswin, untrained Gswin and the extractor it learnt from.

    python docs/study/context/probe.py WORKSPACE RECIPE --classes UCM/classes.csv [--set KEY=VALUE ...]

A logistic regression on frozen, standardised features: trained on the train images, its L2 penalty chosen on val,
judged on test. The start must have been distilled by `cmpagl train RECIPE` in that workspace.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from cmpagl_core.datasets.loading import KeptImages
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.models.gswin import GswinEncoder
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.progress import Silent
from cmpagl_core.recipe_files import load_recipe
from cmpagl_core.training.distill import distill_job, distilled_start
from cmpagl_core.training.start import TrainRequest, distill_data, requested_data
from cmpagl_core.training.teachers import teacher_features, teachers_of
from cmpagl_core.workspace import Workspace

CPU = torch.device("cpu")
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)


def probe(features: torch.Tensor, labels: torch.Tensor, parts: dict[str, torch.Tensor]) -> dict[str, float]:
    """features [N, D], labels [N], rows of each part. Returns accuracies in percent."""
    train = features[parts["train"]]
    scaled = (features - train.mean(dim=0)) / train.std(dim=0).clamp(min=1e-6)
    found = []
    for penalty in PENALTIES:
        weight, bias = fitted(scaled[parts["train"]], labels[parts["train"]], penalty)
        right = ((scaled @ weight + bias).argmax(dim=1) == labels).float()
        found.append({name: round(100 * float(right[rows].mean()), 2) for name, rows in parts.items()})
    return max(found, key=lambda one: one["val"])


def fitted(features: torch.Tensor, labels: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [D, classes] and bias of the logistic regression, by L-BFGS."""
    weight = torch.zeros(features.shape[1], int(labels.max()) + 1, requires_grad=True)
    bias = torch.zeros(weight.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight + bias, labels) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


@torch.inference_mode()
def gswin_features(encoder: GswinEncoder, paths: list[Path], size_px: int) -> torch.Tensor:
    """The mean token of each image, [N, C]."""
    images = KeptImages(paths, size_px)
    batches = range(0, len(paths), 64)
    rows = [torch.stack([images.pixel_values(row) for row in range(at, min(at + 64, len(paths)))]) for at in batches]
    return torch.cat([encoder(batch)[:, 0] for batch in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("recipe")
    parser.add_argument("--classes", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    workspace, recipe = Workspace(given.workspace), load_recipe(given.recipe, given.overrides)
    prepared = requested_data(TrainRequest(), recipe, workspace)
    with given.classes.open(encoding="utf-8") as stream:
        class_of = {Path(row["image"]).stem: row["class"] for row in csv.DictReader(stream)}
    splits = {name: prepared.split(name) for name in ("train", "val", "test")}
    paths = [path for split in splits.values() for path in split.paths]
    names = sorted(set(class_of.values()))
    labels = torch.tensor([names.index(class_of[path.stem]) for path in paths])
    counts = np.cumsum([0, *map(len, splits.values())])
    parts = {name: torch.arange(counts[place], counts[place + 1]) for place, name in enumerate(splits)}
    job = distill_job(recipe, prepared, distill_data(recipe, workspace), CPU)
    assert job is not None, "the recipe distils nothing"
    start = distilled_start(job, workspace.cache, Silent())
    size_px = recipe.data.image_size_px
    torch.manual_seed(0)
    encoder = use_kernels(GswinEncoder(recipe.image_encoder, size_px), CPU).eval()
    results = {"untrained": probe(gswin_features(encoder, paths, size_px), labels, parts)}
    start.fill(encoder)
    results["distilled"] = probe(gswin_features(encoder, paths, size_px), labels, parts)
    hashes = [sha256 for split in splits.values() for sha256 in split.image_sha256]
    refs = [ImageRef(sha256, path) for sha256, path in zip(hashes, paths, strict=True)]
    for teacher in teachers_of(recipe.distill):
        grid = encoder.last_map_size
        maps = teacher_features(teacher, refs, workspace.cache, Silent(), CPU, job.precision, grid)
        found = maps.mean(axis=(2, 3), dtype=np.float32)
        results[f"{teacher.name} at {teacher.side_px} px"] = probe(torch.from_numpy(found), labels, parts)
    sys.stdout.write(
        json.dumps({"start": start.key, "distillation": start.about, "accuracy": results}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
