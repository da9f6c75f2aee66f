"""Draw a whole synthetic set: images, captions and the truth beside each image (ours)."""

from __future__ import annotations

import csv
from pathlib import Path

from cmpagl_core.errors import UsageError
from cmpagl_core.files import atomic_file
from cmpagl_core.progress import Progress
from cmpagl_core.synthetic.drawing import draw_scenes, truth_path
from cmpagl_core.synthetic.kinds import split_of
from cmpagl_core.synthetic.scene import check_size
from cmpagl_core.synthetic.truth import read_truth

DEFAULT_COUNT = 1200
CAPTIONS_FILE = "captions.csv"


def generate(folder: Path, count: int, seed: int, image_size_px: int, progress: Progress) -> None:
    """Draw `count` scenes into folder/images, folder/truth and folder/captions.csv (file, caption, split, scene).

    Scene i depends on the seed, the size and i alone. The CSV is written last, so a set with one is whole.
    Raises UsageError for a count, seed or size that cannot be drawn.
    """
    if count < 1 or seed < 0:
        raise UsageError(f"cannot draw {count} scenes from seed {seed}", hint="both must be whole and not negative")
    check_size(image_size_px)
    with progress.task("drawing scenes", count, "scenes") as advance:
        draw_scenes(folder, count, seed, image_size_px, advance)
    with atomic_file(folder / CAPTIONS_FILE) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("file", "caption", "split", "scene"))
        for number in range(count):
            truth, split = read_truth(truth_path(folder, number)), split_of(number, seed)
            writer.writerows((truth.file, caption, split, truth.scene) for caption in truth.captions)
