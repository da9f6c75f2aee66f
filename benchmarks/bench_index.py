"""Bringing an index of 100,000 images up to date: nothing new, and ten new, against a walk over the same files."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
from _measure import in_turns_s, report

from cmpagl_core.encoders.encoder import EncodedBatch, Features, Fingerprint, Origin
from cmpagl_core.imagery.image_ref import ImageRef
from cmpagl_core.imagery.stamps import stamp_file
from cmpagl_core.progress import Silent
from cmpagl_core.search.gallery_source import folder_source
from cmpagl_core.search.indexing import build_index

IMAGES, DIM, NEW, A_FOLDER = 100_000, 512, 10, 1000


class HashEncoder:
    """Features from a file's hash: what remains is what indexing itself costs."""

    name, dim = "hash", DIM
    fingerprint = Fingerprint("0" * 64, "none", "fp32")
    origin = Origin("run", "nowhere")

    def encode_images(self, images: Sequence[ImageRef]) -> Generator[EncodedBatch, None, None]:
        for start in range(0, len(images), 256):
            part = images[start : start + 256]
            stamps = [stamp_file(image.path) for image in part]
            seeds = [int(stamp.sha256[:8], 16) for stamp in stamps]
            features = np.stack([np.random.default_rng(seed).standard_normal(DIM, dtype=np.float32) for seed in seeds])
            features /= np.linalg.norm(features, axis=1, keepdims=True)
            yield EncodedBatch(features, list(range(start, start + len(part))), stamps, [])

    def encode_texts(self, texts: Sequence[str]) -> Features:
        return np.empty((len(texts), DIM), dtype=np.float32)


def draw(folder: Path, count: int = IMAGES) -> None:
    """Files that differ, of a few bytes each: their content is read once, and never decoded here."""
    for number in range(count):
        place = folder / f"{number // A_FOLDER:03d}"
        if number % A_FOLDER == 0:
            place.mkdir(parents=True)
        (place / f"{number:06d}.jpg").write_bytes(f"image {number}".encode())


def walk(folder: Path) -> int:
    """Look at every file once."""
    return sum(Path(f"{root}/{name}").stat().st_size for root, _, names in os.walk(folder) for name in names)


def main() -> int:
    """Print one line for an update without news, and one for ten new images."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, root = Path(scratch, "images"), Path(scratch, "index")
        draw(folder)

        def update() -> None:
            build_index(HashEncoder(), folder_source(folder), root, Silent())

        update()
        nothing, looked = in_turns_s(update, lambda: walk(folder))
        title = "index with nothing new, 100,000 images"
        met = [report(title, nothing, "s", 1 / 3, "a walk over the same files", looked)]
        taken = []
        for turn in range(5):
            for number in range(NEW):
                shutil.copyfile(folder / "000" / "000000.jpg", folder / f"new-{turn}-{number}.jpg")
                with (folder / f"new-{turn}-{number}.jpg").open("ab") as file:
                    file.write(f"{turn} {number}".encode())
            started_at = time.perf_counter()
            update()
            taken.append(time.perf_counter() - started_at)
        ten = float(np.median(taken))
        met.append(report("index with 10 new images of 100,000", ten, "s", 1 / 4, "a walk over the same files", looked))
        return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
