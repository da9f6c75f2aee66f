"""Draw a whole synthetic set: images, captions and the truth beside each image (ours)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cmpagl_core.errors import UsageError
from cmpagl_core.files import atomic_file, atomic_path, write_json
from cmpagl_core.progress import Progress
from cmpagl_core.synthetic.grammar import describe
from cmpagl_core.synthetic.kinds import kind_of, split_of
from cmpagl_core.synthetic.light import photographed
from cmpagl_core.synthetic.sketch import Sketch
from cmpagl_core.synthetic.truth import SceneTruth, truth_as_json

DEFAULT_COUNT = 1200
DEFAULT_IMAGE_SIZE_PX = 224
CAPTIONS_FILE = "captions.csv"
_LEAST_SIZE_PX, _MOST_SIZE_PX = 64, 1024


@dataclass(frozen=True)
class DrawnScene:
    """One drawn scene: its image [S, S] in RGB and what it truly shows."""

    image: Image.Image
    truth: SceneTruth


def generate(folder: Path, count: int, seed: int, image_size_px: int, progress: Progress) -> None:
    """Draw `count` scenes into folder/images, folder/truth and folder/captions.csv (file, caption, split, scene).

    Scene i depends on the seed, the size and i alone. The CSV is written last, so a set with one is whole.
    Raises UsageError for a count, seed or size that cannot be drawn.
    """
    if count < 1 or seed < 0:
        raise UsageError(f"cannot draw {count} scenes from seed {seed}", hint="both must be whole and not negative")
    _check_size(image_size_px)
    rows: list[tuple[str, str, str, str]] = []
    with progress.task("drawing scenes", count, "scenes") as advance:
        for number in range(count):
            scene = draw_scene(number, seed, image_size_px)
            truth = scene.truth
            with atomic_path(folder / "images" / truth.file) as partial:
                scene.image.save(partial, format="PNG", compress_level=1)
            write_json(folder / "truth" / f"{Path(truth.file).stem}.json", truth_as_json(truth))
            split = split_of(number, seed)
            rows.extend((truth.file, caption, split, truth.scene) for caption in truth.captions)
            advance(1)
    with atomic_file(folder / CAPTIONS_FILE) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("file", "caption", "split", "scene"))
        writer.writerows(rows)


def draw_scene(number: int, seed: int, image_size_px: int = DEFAULT_IMAGE_SIZE_PX) -> DrawnScene:
    """One scene in memory. Raises UsageError for a size that cannot be drawn."""
    _check_size(image_size_px)
    kind = kind_of(number)
    sketch = Sketch(np.random.Generator(np.random.PCG64([seed, number, 0])), image_size_px, kind.metres_per_px)
    kind.draw(sketch)
    objects, relations = sketch.objects(), sketch.relations()
    # Captions have their own random numbers: a change of drawing does not reword the set.
    captions = describe(kind.scene, objects, relations, np.random.Generator(np.random.PCG64([seed, number, 1])))
    truth = SceneTruth(
        file=f"{kind.scene}_{number:05d}.png",
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


def _check_size(image_size_px: int) -> None:
    if not _LEAST_SIZE_PX <= image_size_px <= _MOST_SIZE_PX:
        raise UsageError(
            f"cannot draw scenes of {image_size_px} px", hint=f"choose {_LEAST_SIZE_PX} to {_MOST_SIZE_PX} px"
        )
