"""The air between the ground and the camera: relief, haze, colour cast and sensor noise (ours)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from cmpagl_core.synthetic.sketch import Sketch
from cmpagl_core.synthetic.textures import window

_HAZE = (186, 198, 212)


def photographed(sketch: Sketch) -> Image.Image:
    """The finished image as a camera high above would have it."""
    rng, size = sketch.rng, sketch.frame.size_px
    image = np.asarray(sketch.canvas.finished(), dtype=np.float32)  # [S, S, 3]
    relief = np.asarray(window(rng, "plains", size), dtype=np.float32) - 128  # [S, S]
    image = image * (1 + relief[:, :, None] * np.float32(sketch.uniform(0.0003, 0.0012)))
    contrast, light = np.float32(sketch.uniform(0.88, 1.08)), np.float32(sketch.uniform(-12, 12))
    cast = np.array([sketch.uniform(0.95, 1.05) for _ in range(3)], dtype=np.float32)
    image = ((image - 110) * contrast + 110 + light) * cast
    haze = np.float32(sketch.uniform(0.0, 0.22) * sketch.uniform(0.2, 1.0))
    image = image * (1 - haze) + np.array(_HAZE, dtype=np.float32) * haze
    noise = np.stack([np.asarray(window(rng, "grain", size), dtype=np.float32) for _ in range(2)])
    image = image + (noise[0] + noise[1] - 256)[:, :, None] * np.float32(sketch.uniform(0.01, 0.06))
    return Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))
