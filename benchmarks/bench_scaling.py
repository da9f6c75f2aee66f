"""Cost with size: encoding, exact search and SMR at N, 2 N, 4 N and 8 N must grow no faster than their work.

The work of encoding is the number of images, of search and SMR queries times gallery. A tenth more is allowed for
what the clock and the caches add. Export is encoding plus the decoding that `bench_export.py` measures beside it; it
begins at eight batches, since fewer don't show decoding and encoding side by side.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _measure import median_s, report
from numpy.typing import NDArray
from PIL import Image

from cmpagl_core.encoders.encode import encode_images
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.progress import Silent
from cmpagl_core.ranking.rerank import Directions, Gammas, RerankParams, rerank
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.recipe_files import parse_recipe
from cmpagl_core.runs import LoadedModel
from cmpagl_core.search.stores.exact import top_k

FACTORS = (2, 4, 8)
ALLOWED = 1.1
WIDTH = 256
TUNED = RerankParams(Gammas("multiply", 1.0, 4.0))
RECIPE = """
image_encoder: {size: custom, width: 32, depths: [1, 1, 2, 1], num_heads: [1, 2, 4, 8]}
text_encoder: {size: tiny}
data: {image_size_px: 112}
train: {precision: bf16}
evaluate: {batch_size: 32}
"""


def unit_rows(count: int, seed: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, WIDTH), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def growth(name: str, run: Callable[[int], object], smallest: int, power: int = 1) -> bool:
    """One line for each factor: seconds a unit of work against those at the smallest size. power: of N in the work."""
    base = median_s(lambda: run(smallest))
    done = []
    for factor in FACTORS:
        value = median_s(lambda factor=factor: run(factor * smallest))
        work = factor**power
        title = f"{name}, {smallest} to {factor * smallest}: time for {work} x the work"
        done.append(report(title, value, "s", 1 / ALLOWED, f"{work} x the time of {smallest}", work * base))
    return all(done)


def export(folder: Path) -> Callable[[int], object]:
    """From files to features: decoding, encoding."""
    recipe = parse_recipe(RECIPE, "the benchmark")
    tokenizer = load_tokenizer(recipe.text_encoder, 64, ["a caption"])
    model = use_kernels(build_model(recipe, tokenizer.vocab_size), torch.device("cpu")).eval()
    loaded = LoadedModel(model, tokenizer, recipe, "", torch.device("cpu"))
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    path = folder / "image.jpg"
    Image.fromarray(pixels).save(path)
    return lambda count: encode_images(loaded, [ImageRef("one", path)] * count, Silent())


def smr(count: int) -> object:
    plain = Directions(ScoreMatrix.from_features(unit_rows(count, 0), unit_rows(5 * count, 1)))
    stage = rerank(plain, "smr", TUNED)
    return [stage.i2t.block(slice(None), slice(None)), stage.t2i.block(slice(None), slice(None))]


def main() -> int:
    torch.set_num_threads(2)
    queries = unit_rows(64, 2)
    galleries = {count: unit_rows(count, 3) for count in (20_000 * factor for factor in (1, *FACTORS))}
    with tempfile.TemporaryDirectory() as folder:
        done = [growth("export of images (decode and encode)", export(Path(folder)), 256)]
    done.append(growth("exact search of 64 queries", lambda count: top_k(galleries[count], queries, 10), 20_000))
    done.append(growth("SMR, N images x 5 N texts, both directions", smr, 125, power=2))
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
