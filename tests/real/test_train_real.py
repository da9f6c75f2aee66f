"""`ucm-cpu` trains on real images with the packages' weights, and leaves the frozen backbone as it was published."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch

from cmpagl_core.datasets.prepared import IMAGE_COLUMNS, PreparedDataset
from cmpagl_core.datasets.writing import Provenance, write_prepared
from cmpagl_core.files import FileStamp
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.progress import Silent
from cmpagl_core.recipe_files import load_recipe
from cmpagl_core.runs import read_tensors
from cmpagl_core.training import loop
from cmpagl_core.training.journal import read_journal

pytestmark = pytest.mark.real

PER_SPLIT = {"train": 16, "val": 8}
FROZEN = "image_encoder.patch_embed."
SMALL = (
    "data.dataset=''",
    "data.image_size_px=128",
    "data.augment=none",
    "evaluate.tta=none",
    "train.epochs=3",
    "train.batch_size=8",
    "train.ema_decay=0",
    "train.precision=fp32",
    "optim.warmup_fraction=0",
)


@pytest.fixture
def few_images(real_data: Path, tmp_path: Path) -> PreparedDataset:
    """Some images of UCM-Captions, spread over its classes, with all their captions."""
    listed = json.loads((real_data / "annotations" / "dataset_ucm.json").read_text())["images"]
    images, captions = [], []
    for split, count in PER_SPLIT.items():
        of_split = [one for one in listed if one["split"] == split]
        for one in of_split[:: len(of_split) // count][:count]:
            name = Path(one["filename"]).stem
            path = (real_data / "ucm" / "images" / f"{name}.jpg").resolve()
            images.append((name, os.path.relpath(path, tmp_path), split, "256", "256", *_mark(path), ""))
            captions += [(f"{name}#{row}", name, said["raw"]) for row, said in enumerate(one["sentences"])]
    return write_prepared(
        tmp_path,
        pd.DataFrame(images, columns=list(IMAGE_COLUMNS), dtype="str"),
        pd.DataFrame(captions, columns=["caption_id", "image_id", "text"], dtype="str"),
        Provenance(name="few"),
    )


def test_the_cpu_recipe_learns_real_pairs_over_its_frozen_backbone(few_images: PreparedDataset, tmp_path: Path) -> None:
    recipe = load_recipe("ucm-cpu", SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_curves", lambda root, progress: None)
        run = loop.fit(recipe, few_images, tmp_path / "run", Silent(), torch.device("cpu"))
    losses = [event["loss"] for event in read_journal(run.log_path) if event["event"] == "epoch"]
    assert losses[-1] < losses[0]
    assert run.info.best.mr > 100 * (1 + 5 + 8) / 3 / 8  # better than chance among eight images
    tensors = read_tensors(run.weights_path)
    published = build_model(recipe, run.info.vocab_size).state_dict()
    frozen = [name for name in published if name.startswith(FROZEN)]
    assert len(frozen) > 200
    assert all(torch.equal(tensors[name], published[name]) for name in frozen)
    as_imported = [name for name in published if name.startswith("text_encoder.")]
    assert all(torch.equal(tensors[name], published[name]) for name in as_imported)
    learned = (
        "text_projection.weight",
        "backbone_skip.projections.0.linear.weight",
        "backbone_skip.gate",
        "itm_head.weight",
    )
    assert all(not torch.equal(tensors[name], published[name]) for name in learned)


def _mark(path: Path) -> tuple[str, str, str]:
    """Bytes, time and hash of a file, as the table of images has them."""
    mark = FileStamp.of(path)
    return str(mark.size), str(mark.mtime_ns), mark.sha256
