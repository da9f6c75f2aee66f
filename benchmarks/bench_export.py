"""Export end to end from JPEG files against the image encoder alone on ready tensors: Gswin-T, 224 px.

Both in bf16 where the processor has instructions for it, in fp32 elsewhere. Images of UCM where they lie beside the
repository, else drawn ones of the same size.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from _measure import PRECISION, in_turns_s, report
from PIL import Image

from cmpagl_core.device import autocast, keep_freed_memory
from cmpagl_core.encoders.encode import encode_images
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.images import open_image, to_pixel_values
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.progress import Silent
from cmpagl_core.recipe_files import parse_recipe
from cmpagl_core.runs import LoadedModel

IMAGES, BATCH = 96, 32
REAL = Path(__file__).parent.parent.parent / "shared" / "data" / "ucm" / "images"
RECIPE = """
image_encoder: {size: tiny}
text_encoder: {size: tiny}
train: {precision: bf16}
evaluate: {batch_size: 32}
"""


@contextmanager
def some_images() -> Iterator[list[Path]]:
    """JPEG files of about 256 x 256."""
    found = sorted(REAL.glob("*.jpg"))[: IMAGES * 20 : 20]
    if len(found) == IMAGES:
        yield found
        return
    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        for number in range(IMAGES):
            small = Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            small.resize((256, 256), Image.Resampling.BICUBIC).save(Path(folder, f"{number}.jpg"), quality=90)
        yield sorted(Path(folder).glob("*.jpg"))


def main() -> int:
    """Print one line."""
    torch.set_num_threads(2)
    keep_freed_memory()  # as every command of ours begins on a CPU
    recipe = parse_recipe(RECIPE, "the benchmark")
    tokenizer = load_tokenizer(recipe.text_encoder, 64, ["a caption"])
    model = use_kernels(build_model(recipe, tokenizer.vocab_size), torch.device("cpu")).eval()
    loaded = LoadedModel(model, tokenizer, recipe, "", torch.device("cpu"))
    with some_images() as paths:
        ready = torch.stack([to_pixel_values(open_image(path), recipe.data.image_size_px) for path in paths])

        def encoder_alone() -> list[torch.Tensor]:
            with torch.inference_mode(), autocast(loaded.device, "bf16"):
                return [model.encode_images(batch).features for batch in ready.split(BATCH)]

        images = [ImageRef(path.name, path) for path in paths]
        cosines = (encode_images(loaded, images, Silent()) * torch.cat(encoder_alone()).float().numpy()).sum(axis=1)
        assert cosines.min() > 0.999, "not the features of the encoder"
        ours, alone = in_turns_s(lambda: encode_images(loaded, images, Silent()), encoder_alone)
    title = f"export from {IMAGES} JPEG files, Gswin-T, {PRECISION}"
    return 0 if report(title, ours, "s", 0.9, "the encoder alone on ready tensors", alone) else 1


if __name__ == "__main__":
    sys.exit(main())
