"""How often `cmpagl localize` finds the right patch: scenes of 16 UCM images each, drawn by seed, none from training.

    python docs/study/localize/bar.py --workspace W --run ucm-cpu --images UCM/images --classes UCM/classes.csv

A scene is 4 x 4 held-back images of 16 different classes. The patch, and the query (its class name, or one of its
captions), are drawn before the model sees anything. A hit: the maximum of the heat lies inside the patch. `exact`
compares the query with the 16 patches themselves: what the encoder can do where nothing has to be found.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.encoders.cmpagl import CmpaglEncoder
from cmpagl_core.encoders.encoder import EncodedBatch, Features
from cmpagl_core.imagery.image_ref import ImageRef, Window
from cmpagl_core.imagery.pieces import pieces_of, scene_of
from cmpagl_core.progress import Silent
from cmpagl_core.runs import open_run
from cmpagl_core.search.localize import DEFAULT_SIZES_PX, localize
from cmpagl_core.workspace import Workspace

SIDE, PATCH_PX = 4, 256
WORDS = {  # classes.csv's names, split into words
    "baseballdiamond": "baseball diamond", "denseresidential": "dense residential", "golfcourse": "golf course",
    "mediumresidential": "medium residential", "mobilehomepark": "mobile home park", "parkinglot": "parking lot",
    "sparseresidential": "sparse residential", "storagetanks": "storage tanks", "tenniscourt": "tennis court",
}  # fmt: skip


@dataclass(frozen=True)
class Held:
    """An image that no training saw."""

    path: Path
    label: str
    captions: tuple[str, ...]


class Remembering:
    """An encoder that encodes each tile once, whatever is asked of it."""

    def __init__(self, encoder: CmpaglEncoder) -> None:
        self._encoder, self._features = encoder, dict[ImageRef, Any]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode_images(self, images: Sequence[ImageRef]) -> Iterator[EncodedBatch]:
        new = [image for image in images if image not in self._features]
        for batch in self._encoder.encode_images(new):
            self._features.update(zip((new[row] for row in batch.rows), batch.features, strict=True))
        yield EncodedBatch(np.stack([self._features[one] for one in images]), list(range(len(images))), [], [])

    def of(self, images: Sequence[ImageRef]) -> Features:
        return next(self.encode_images(images)).features


def held_images(data: Path, images: Path, classes: Path) -> list[Held]:
    with classes.open(newline="") as stream:
        label = {Path(row["image"]).stem: row["class"] for row in csv.DictReader(stream)}
    prepared, found = open_prepared(data), []
    for name in ("val", "test"):
        split = prepared.split(name, check_files=False)
        for row, image in enumerate(split.images):
            texts = tuple(split.captions[caption] for caption in split.captions_of(row))
            found.append(Held(images / image.path.name, label[image.path.stem], texts))
    return found


def draw(seed: int, held: Sequence[Held], folder: Path) -> tuple[Path, int, Held, str]:
    """A scene, the place of its patch, the patch, and the caption that is asked for."""
    generator = np.random.default_rng(seed)
    labels = sorted({one.label for one in held})
    chosen = [labels[row] for row in generator.permutation(len(labels))[: SIDE * SIDE]]
    pools = [[one for one in held if one.label == label] for label in chosen]
    patches = [pool[int(generator.integers(len(pool)))] for pool in pools]
    scene = Image.new("RGB", (SIDE * PATCH_PX, SIDE * PATCH_PX))
    for place, patch in enumerate(patches):
        pixels = Image.open(patch.path).convert("RGB").resize((PATCH_PX, PATCH_PX))
        scene.paste(pixels, (place % SIDE * PATCH_PX, place // SIDE * PATCH_PX))
    path = folder / f"scene-{seed}.png"
    scene.save(path)
    place = int(generator.integers(SIDE * SIDE))
    captions = patches[place].captions
    return path, place, patches[place], captions[int(generator.integers(len(captions)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path())
    parser.add_argument("--run", required=True)
    parser.add_argument("--data", default="ucm")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--classes", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the first scene")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(DEFAULT_SIZES_PX))
    given = parser.parse_args()
    workspace = Workspace(given.workspace)
    run = open_run(workspace.find("runs", given.run))
    encoder = CmpaglEncoder(run, Silent(), torch.device("cpu")).with_tta("none")
    held = held_images(workspace.find("data", given.data), given.images, given.classes)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seed, given.seed + given.scenes):
            path, place, patch, caption = draw(seed, held, Path(folder))
            remembering: Any = Remembering(encoder)
            row: dict[str, Any] = {"seed": seed, "class": patch.label, "caption": caption}
            for kind, text in (("class", WORDS.get(patch.label, patch.label)), ("caption", caption)):
                found = localize(remembering, path, text, Silent(), given.sizes)
                column, line = found.peak
                row[f"{kind}_hit"] = line // PATCH_PX * SIDE + column // PATCH_PX == place
                row[f"{kind}_exact"] = nearest_patch(remembering, path, text) == place
            rows.append(row)
            print(json.dumps(row), flush=True)
    counted = ("class_hit", "caption_hit", "class_exact", "caption_exact")
    total = {key: sum(row[key] for row in rows) for key in counted}
    print(json.dumps({"run": run.root.name, "weights": run.info.weights_sha256, "sizes": given.sizes,
                      "scenes": len(rows), **total}))  # fmt: skip


def nearest_patch(encoder: Any, path: Path, text: str) -> int:
    image = ImageRef(path.name, path)
    places = range(SIDE * SIDE)
    windows = [Window(p % SIDE * PATCH_PX, p // SIDE * PATCH_PX, PATCH_PX, PATCH_PX) for p in places]
    features = encoder.of(pieces_of(image, scene_of(image), windows))
    return int((features @ encoder.encode_texts([text])[0]).argmax())


if __name__ == "__main__":
    main()
