"""Draws one synthetic scene in memory, with the truth about what it shows (ours)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from cmpagl_core.errors import UsageError
from cmpagl_core.synthetic.grammar import describe
from cmpagl_core.synthetic.kinds import kind_of, scene_file
from cmpagl_core.synthetic.light import photographed
from cmpagl_core.synthetic.sketch import Sketch
from cmpagl_core.synthetic.truth import SceneTruth

DEFAULT_IMAGE_SIZE_PX = 224
_LEAST_SIZE_PX, _MOST_SIZE_PX = 64, 1024


@dataclass(frozen=True)
class DrawnScene:
    """One drawn scene: its image [S, S] in RGB and what it truly shows."""

    image: Image.Image
    truth: SceneTruth


def draw_scene(number: int, seed: int, image_size_px: int = DEFAULT_IMAGE_SIZE_PX) -> DrawnScene:
    """One scene in memory. Raises UsageError for a size that cannot be drawn."""
    check_size(image_size_px)
    kind = kind_of(number)
    sketch = Sketch(np.random.Generator(np.random.PCG64([seed, number, 0])), image_size_px, kind.metres_per_px)
    kind.draw(sketch)
    objects, relations = sketch.objects(), sketch.relations()
    # Captions have their own random numbers: a change of drawing does not reword the set.
    captions = describe(kind.scene, objects, relations, np.random.Generator(np.random.PCG64([seed, number, 1])))
    truth = SceneTruth(
        file=scene_file(number),
        scene=kind.scene,
        kind=kind.name,
        seed=seed,
        number=number,
        image_size_px=image_size_px,
        metres_per_px=sketch.frame.metres_per_px,
        objects=objects,
        relations=relations,
        captions=captions,
    )
    return DrawnScene(photographed(sketch), truth)


def check_size(image_size_px: int) -> None:
    """Raises UsageError for a size that cannot be drawn."""
    if not _LEAST_SIZE_PX <= image_size_px <= _MOST_SIZE_PX:
        raise UsageError(
            f"cannot draw scenes of {image_size_px} px", hint=f"choose {_LEAST_SIZE_PX} to {_MOST_SIZE_PX} px"
        )
