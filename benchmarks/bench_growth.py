"""What users wait for, at N, 2 N, 4 N and 8 N: drawing, updating an index, a cold question, many questions, tiles.

Each must grow no faster than its work; `bench_scaling.py` does the same for the work inside.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench_cold import ask, make_index
from bench_index import HashEncoder, draw
from bench_scaling import FACTORS, growth
from bench_scenes import SMALL_RECIPE, loaded_model, tiles_of, write_scene
from bench_search import unit_rows

from cmpagl_core.encoders.encode import encode_images
from cmpagl_core.progress import Silent
from cmpagl_core.search.gallery_source import folder_source
from cmpagl_core.search.indexing import build_index
from cmpagl_core.search.stores.exact import ExactStore
from cmpagl_core.search.stores.int8 import Int8Store
from cmpagl_core.synthetic.generate import generate

SIZES = (1, *FACTORS)
SCENES, FILES, GALLERY, TILED_SIDE_PX = 16, 12_500, 125_000, 1_024


def drawing(scratch: Path) -> Callable[[int], object]:
    """`prepare synthetic`, without what follows the drawing."""

    def run(count: int) -> None:
        shutil.rmtree(scratch / "drawn", ignore_errors=True)
        generate(scratch / "drawn", count, 0, 256, Silent())

    return run


def updates(scratch: Path) -> Callable[[int], object]:
    """`index` with nothing new."""
    for size in SIZES:
        draw(scratch / f"files{size * FILES}", size * FILES)

    def run(count: int) -> None:
        build_index(HashEncoder(), folder_source(scratch / f"files{count}"), scratch / f"index{count}", Silent())

    return run


def questions(scratch: Path) -> Callable[[int], object]:
    """`retrieve` by text, cold."""
    for size in SIZES:
        make_index(scratch / f"asked{size * GALLERY}" / "indexes" / "many", "minilm-l6", size * GALLERY)
    return lambda count: ask(str(scratch / f"asked{count}"))


def many_questions() -> Callable[[int], object]:
    """512 lines of `retrieve --queries`, start-up apart."""
    features, queries = unit_rows(GALLERY * SIZES[-1], 0), unit_rows(512, 1)
    stores = {
        size * GALLERY: Int8Store(ExactStore(np.ascontiguousarray(features[: size * GALLERY])), Silent())
        for size in SIZES
    }
    return lambda count: stores[count].top_k(queries, 10)


def tiles(scratch: Path) -> Callable[[int], object]:
    """`index` of a scene in tiles, in numbers of tiles of 512 px."""
    loaded = loaded_model(SMALL_RECIPE)
    write_scene(scratch / "scene.tif", TILED_SIDE_PX * 6, 3, tiled=True)
    pieces = tiles_of(scratch / "scene.tif")
    return lambda count: encode_images(loaded, pieces[:count], Silent())


def main() -> int:
    """Print a line for each work and size."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        done = [
            growth("drawing synthetic scenes", drawing(scratch), SCENES),
            growth("index with nothing new, images", updates(scratch), FILES),
            growth("cold retrieve by text, images", questions(scratch), GALLERY),
            growth("512 queries, images", many_questions(), GALLERY),
            growth("tiles of a 16-bit scene", tiles(scratch), 16),
        ]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
