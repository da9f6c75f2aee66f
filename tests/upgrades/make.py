"""Write the artefacts that test_upgrades.py opens: python make.py VERSION.zip, once for each release.

All weights are zero, so that the archive is small.
"""

from __future__ import annotations

import os
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch

from cmpagl_core.datasets.prepare import prepare
from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.datasets.request import PrepareRequest
from cmpagl_core.datasets.splits import selection_splits
from cmpagl_core.encoders.feature_set import FeatureInfo, FeatureSet, save_feature_set
from cmpagl_core.evaluation.protocol import seen_of
from cmpagl_core.models.bert import bert_shape
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.progress import Silent
from cmpagl_core.recipe_files import load_recipe
from cmpagl_core.runs import BestEpoch, RunInfo, current_code, current_versions, save_run
from cmpagl_core.search.gallery_source import folder_source
from cmpagl_core.search.indexing import build_index
from cmpagl_core.workspace import Workspace
from tests.conftest import FakeEncoder
from tests.faults.workspace import fill


def make(archive: Path) -> None:
    """A data set, a run, an index, a feature set and a recipe."""
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        fill(Path())
        prepare(PrepareRequest("folder", "mine", Path("mine")), Workspace(Path()), Silent())
        prepared = open_prepared(Path("data/mine"))
        recipe = load_recipe("tiny.yaml")
        train, selection = selection_splits(prepared, recipe.data.selection)
        tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, train.captions)
        shape = bert_shape(recipe.text_encoder, tokenizer.vocab_size)
        model = build_model(recipe, tokenizer.vocab_size, text_shape=shape)
        info = RunInfo(
            name="tiny", dataset="mine", dataset_root="data/mine", manifest_sha256=prepared.manifest.sha256,
            train_sha256=train.sha256, selection_sha256=selection.sha256, recipe_name="tiny",
            recipe_sha256=recipe.sha256(), code=current_code(), versions=current_versions(),
            best=BestEpoch(epoch=1, mr=1.0), vocab_size=tokenizer.vocab_size, text_shape=shape.to_dict(), seed=0,
            epochs=1, parameters=1, elapsed_s=1.0, seconds_per_epoch=1.0, started_at="2024-01-01T00:00:00+00:00",
            device="cpu", threads=1, precision="fp32",
        )  # fmt: skip
        state = {key: torch.zeros_like(tensor) for key, tensor in model.state_dict().items()}
        save_run(Path("runs/tiny"), recipe, info, state, tokenizer.to_json(), seen_of(train, selection))
        build_index(FakeEncoder(), folder_source(Path("mine")), Path("indexes/folder"), Silent())  # type: ignore[arg-type]
        features = FeatureSet(
            np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), np.arange(2), ("a", "b"), ("0" * 64, "1" * 64),
            ("/a", "/b"), ("one", "two"), FeatureInfo("tiny", "", "mine", "", "test", "", "as usual", "fp32"),
        )  # fmt: skip
        save_feature_set(Path("features.safetensors"), features)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
            for folder in ("data", "runs", "indexes", "features.safetensors", "tiny.yaml", "mine"):
                paths = sorted(Path(folder).rglob("*")) if Path(folder).is_dir() else [Path(folder)]
                for path in paths:
                    if path.is_file():
                        packed.writestr(zipfile.ZipInfo(str(path)), path.read_bytes(), zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute())
