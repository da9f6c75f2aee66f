"""A data set of coloured squares that a tiny model learns in seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cmpagl_core.datasets.prepared import IMAGE_COLUMNS, PreparedDataset
from cmpagl_core.datasets.writing import Provenance, write_prepared
from cmpagl_core.files import FileStamp
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import parse_recipe

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}
PLACES = ("field", "roof", "lake", "road")
SPLIT_SIZES = {"train": 16, "val": 8, "test": 4}

TINY_RECIPE = """
data: {image_size_px: 32, max_caption_tokens: 12}
image_encoder: {size: custom, width: 8, depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 2], window_size: 2, drop_path: 0.1}
text_encoder: {size: tiny}
losses: {embed_dim: 16}
optim: {lr: 2.0e-3, warmup_fraction: 0.1}
train: {epochs: 3, batch_size: 6, precision: fp32, ema_decay: 0.9}
evaluate: {itm_k: 4}
"""

BACKBONE_RECIPE = """
data: {image_size_px: 32, max_caption_tokens: 12}
image_encoder:
  size: custom
  width: 8
  depths: [0, 0, 1, 1]
  num_heads: [1, 1, 2, 2]
  window_size: 2
  backbone: mobilenetv3_small_050
  backbone_strides: [16, 32]
text_encoder: {size: tiny}
losses: {embed_dim: 16, mlm: 0}
optim: {lr: 2.0e-3}
train: {epochs: 2, batch_size: 6, precision: fp32}
evaluate: {itm_k: 4, tta: d4}
"""

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(autouse=True)
def no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk takes longer than a tiny training."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def tiny_yaml() -> str:
    return TINY_RECIPE


@pytest.fixture(scope="session")
def backbone_yaml() -> str:
    return BACKBONE_RECIPE


@pytest.fixture(scope="session")
def tiny_recipe() -> MakeRecipe:
    """The recipe with every loss, a global window and an average; overrides as on the command line."""
    return lambda *overrides: parse_recipe(TINY_RECIPE, "tiny", overrides)


@pytest.fixture(scope="session")
def backbone_recipe() -> MakeRecipe:
    """The recipe with a frozen backbone whose maps are cached."""
    return lambda *overrides: parse_recipe(BACKBONE_RECIPE, "backbone", overrides)


def make_squares(root: Path) -> PreparedDataset:
    """Images of a coloured square on a coloured ground, two captions each."""
    rng = np.random.default_rng(0)
    images, captions = [], []
    folder = root / "images"
    folder.mkdir(parents=True)
    for split, size in SPLIT_SIZES.items():
        for number in range(size):
            name = f"{split}{number:02d}"
            inner, outer = rng.choice(list(COLOURS), size=2, replace=False)
            place = str(rng.choice(PLACES))
            pixels = np.full((32, 32, 3), COLOURS[outer], dtype=np.uint8)
            left, top = rng.integers(2, 14, size=2)
            pixels[top : top + 14, left : left + 14] = COLOURS[inner]
            noise = rng.integers(-20, 20, pixels.shape)
            Image.fromarray((pixels.astype(int) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
            mark = FileStamp.of(folder / f"{name}.png")
            state = str(mark.size), str(mark.mtime_ns)
            images.append((name, f"images/{name}.png", split, "32", "32", *state, mark.sha256, place))
            texts = (f"a {inner} {place} on {outer} ground", f"there is {outer} around something {inner}")
            captions += [(f"{name}#{row}", name, text) for row, text in enumerate(texts)]
    return write_prepared(
        root,
        pd.DataFrame(images, columns=list(IMAGE_COLUMNS), dtype="str"),
        pd.DataFrame(captions, columns=["caption_id", "image_id", "text"], dtype="str"),
        Provenance(name="squares"),
    )


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_squares(tmp_path_factory.mktemp("squares") / "data" / "squares")
