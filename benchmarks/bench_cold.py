"""A cold `cmpagl retrieve` over 10,000 and 1,000,000 images against the import of torch, transformers and BertModel."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from _measure import in_turns_s, report

from cmpagl_core.encoders.cmpagl import write_text_tower
from cmpagl_core.encoders.tensor_file import TextTable
from cmpagl_core.encoders.text_tower import open_text_tower
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.recipe_files import parse_recipe
from cmpagl_core.runs import LoadedModel
from cmpagl_core.search.index import GalleryIndex, IndexInfo, save_index
from cmpagl_core.search.marker import write_named
from cmpagl_core.search.stored import FileStamps

IMAGES, MANY, DIM = 10_000, 1_000_000, 256
BARS = {IMAGES: 1 / 0.08, MANY: 1 / 0.2}
QUERY = "two baseball fields next to a road"
PEER = "import torch, transformers; from transformers import BertModel"
RECIPE = """
image_encoder: {size: custom, width: 16, depths: [1, 1, 1, 1], num_heads: [1, 2, 4, 8]}
text_encoder: {size: SIZE}
losses: {embed_dim: DIM}
"""


def make_index(root: Path, size: str, images: int = IMAGES, dim: int = DIM) -> None:
    """An index of random images with five captions each, and the text half of a model of that size."""
    recipe = parse_recipe(RECIPE.replace("SIZE", size).replace("DIM", str(dim)), "the benchmark")
    words = [f"word{number}" for number in range(8000)]
    tokenizer = load_tokenizer(recipe.text_encoder, 64, [QUERY, *words])
    model = use_kernels(build_model(recipe, tokenizer.vocab_size), torch.device("cpu")).eval()
    loaded = LoadedModel(model, tokenizer, recipe, "0" * 64, torch.device("cpu"))
    tokens = tokenizer([QUERY])
    with torch.inference_mode():
        expected = model.encode_texts(tokens.input_ids, tokens.attention_mask).features.numpy()
    values = np.random.default_rng(0).standard_normal((images, dim), dtype=np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    ids = [f"{row:07d}.jpg" for row in range(images)]
    nothing = np.zeros(images, dtype=np.int64)
    index = GalleryIndex(
        root=root,
        image_features=values,
        image_ids=TextTable.of(ids),
        paths=TextTable.of(f"/images/{name}" for name in ids),
        windows=None,
        captions=TextTable.of(f"caption {number} of many" for number in range(IMAGES)),
        text_features=values[:IMAGES],
        caption_image=np.repeat(np.arange(images), 5),
        caption_text=np.resize(np.arange(IMAGES), 5 * images),
        tie_order=None,
        stamps=FileStamps(nothing, nothing, np.zeros((images, 32), dtype=np.uint8)),
        info=IndexInfo("many", "folder", "/images", "", "", "model", "run", "", "0" * 64, "", "bf16"),
    )
    written = write_named(root, "text_tower", lambda path: write_text_tower(path, loaded))
    tower = save_index(index, "", [], {"text_tower": written}).tower
    assert tower is not None
    assert np.abs(open_text_tower(tower).encode([QUERY]) - expected).max() < 1e-4, "not the model's features"


def ask(workspace: str) -> None:
    """One question in a process of its own."""
    code = "from cmpagl_cli.entry import main; main()"
    run("-c", code, "--workspace", workspace, "retrieve", QUERY, "--format", "json")


def run(*arguments: str) -> None:
    """A cold Python with the same number of threads for both sides."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)


def main() -> int:
    """Print one line for each number of images and size of the text half."""
    met = []
    for images, size in ((IMAGES, "minilm-l6"), (IMAGES, "bert-base"), (MANY, "minilm-l6")):
        with tempfile.TemporaryDirectory() as folder:
            make_index(Path(folder, "indexes", "many"), size, images)
            ours, peer = in_turns_s(lambda folder=folder: ask(folder), lambda: run("-c", PEER))
            title = f"cold retrieve, {images:,} images, {size} text half"
            met.append(report(title, ours, "s", BARS[images], PEER, peer))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
