"""Scenes cut into tiles while they are encoded: speed beside ready tiles, and memory above the loaded model.

Both with Gswin-T at 224 px and tiles of 512 px out of 16-bit GeoTIFFs, deflated, drawn here. Memory is measured with an
encoder that is small, so that 1,600 tiles take seconds and reading is the larger part.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
import torch
from _measure import PRECISION, in_turns_s, report
from bench_memory import GIB, resident_bytes

from cmpagl_core.device import autocast, keep_freed_memory
from cmpagl_core.encoders.encode import encode_images, encoded_batches, forward_pass
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import to_pixel_values
from cmpagl_core.imagery.pieces import pieces_of, scene_of, windows_of
from cmpagl_core.imagery.reader import open_ref
from cmpagl_core.imagery.tiles import Tiling
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.progress import Silent
from cmpagl_core.recipe_files import parse_recipe
from cmpagl_core.runs import LoadedModel

BATCH, TILE_PX = 32, 512
RECIPE = """
image_encoder: {size: tiny}
text_encoder: {size: tiny}
train: {precision: bf16}
evaluate: {batch_size: 32}
"""
SMALL_RECIPE = """
data: {image_size_px: 224}
image_encoder: {size: custom, width: 16, depths: [1, 1, 1, 1], num_heads: [1, 2, 4, 8], window_size: 7}
text_encoder: {size: tiny}
evaluate: {batch_size: 32}
"""


def write_scene(path: Path, side: int, bands: int, tiled: bool) -> None:
    """Fields with noise over them, values of 12 bits; in tiles of 512 px, or in strips of one line."""
    generator = np.random.default_rng(0)
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512} if tiled else {"blockysize": 1}
    noise = generator.normal(0, 40, (bands, TILE_PX, side)).astype(np.float32)
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=bands, dtype="uint16", compress="deflate",
        predictor=2, zlevel=1, photometric="RGB" if bands == 3 else "MINISBLACK", **layout,
    ) as file:  # fmt: skip
        for top in range(0, side, TILE_PX):
            rows = min(TILE_PX, side - top)
            fields = generator.uniform(300, 2_400, (bands, TILE_PX // 16, -(-side // 16))).astype(np.float32)
            fields = fields.repeat(16, axis=1).repeat(16, axis=2)[:, :rows, :side]
            window = rasterio.windows.Window(0, top, side, rows)
            file.write((fields + noise[:, :rows]).clip(1, 4_095).astype(np.uint16), window=window)


def tiles_of(path: Path) -> list[ImageRef]:
    """As an index cuts it."""
    image = ImageRef(path.name, path)
    scene = scene_of(image)
    return pieces_of(image, scene, windows_of(image, scene, Tiling(TILE_PX)))


def loaded_model(text: str) -> LoadedModel:
    """Random weights, on the CPU, as a run is loaded."""
    recipe = parse_recipe(text, "the benchmark")
    tokenizer = load_tokenizer(recipe.text_encoder, 64, ["a caption"])
    model = use_kernels(build_model(recipe, tokenizer.vocab_size), torch.device("cpu")).eval()
    return LoadedModel(model, tokenizer, recipe, "", torch.device("cpu"))


def speed(path: Path) -> tuple[int, float, float]:
    """How many tiles, and seconds that they take from the file and ready in memory."""
    loaded = loaded_model(RECIPE)
    tiles = tiles_of(path)
    size = loaded.recipe.data.image_size_px
    ready = torch.stack([to_pixel_values(open_ref(tile, 2 * size), size) for tile in tiles])

    def encoder_alone() -> list[torch.Tensor]:
        with torch.inference_mode(), autocast(loaded.device, "bf16"):
            return [loaded.model.encode_images(batch).features for batch in ready.split(BATCH)]

    cosines = (encode_images(loaded, tiles, Silent()) * torch.cat(encoder_alone()).float().numpy()).sum(axis=1)
    assert cosines.min() > 0.999, "not the features of the encoder"
    return len(tiles), *in_turns_s(lambda: encode_images(loaded, tiles, Silent()), encoder_alone)


def peak_bytes(path: Path) -> tuple[int, float]:
    """How many tiles, and how far cutting and encoding them rises above what is resident with the model loaded.

    In a process of its own: what another measurement has freed would count as resident.
    """
    torch.set_num_threads(2)
    loaded = loaded_model(SMALL_RECIPE)
    with forward_pass(loaded):
        loaded.model.encode_images(torch.zeros(BATCH, 3, 224, 224))  # pools made
    start = resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    tiles = tiles_of(path)
    with forward_pass(loaded):
        seen = sum(len(batch.rows) for batch in encoded_batches(loaded, tiles))
    assert seen == len(tiles)
    return seen, float(resident_bytes("VmHWM") - start)


def main() -> int:
    """Print a line of speed, and of memory for each of three scenes."""
    torch.set_num_threads(2)
    keep_freed_memory()  # as every command of ours begins on a CPU
    good = True
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scene.tif")
        write_scene(path, 5_120, 3, tiled=True)
        count, ours, ready = speed(path)
        title = f"encode {count} tiles of a 16-bit scene from its file, Gswin-T, {PRECISION}"
        good &= report(title, ours, "s", 0.9, "the encoder alone on ready tiles", ready)
        for side, bands, tiled in ((20_000, 3, True), (20_000, 3, False), (10_000, 1, False)):
            write_scene(path, side, bands, tiled)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                count, peak = pool.apply(peak_bytes, (path,))
            how = "in tiles" if tiled else "in strips"
            title = f"memory while {count:,} tiles of {side:,} x {side:,} x {bands}, 16 bits, {how}, are encoded"
            good &= report(f"{title}, above the model", peak / GIB, "GiB", 1.0)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
