"""Recalls of the best possible rankings by scene class alone, and by the words of captions alone.

    python docs/results/bounds.py --data W/data/ucm --split test
    python docs/results/bounds.py --data W/data/rsicd --split val

By class, an image and a caption score 1 if the caption's image is of the same class, else 0; by words, if the image has
a caption with the same words. Ties count as in every evaluation: recall is its expectation over their order. One JSON
line per ranking.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.datasets.same_caption import caption_classes
from cmpagl_core.evaluation.recall import Matches, recall
from cmpagl_core.ranking.scores import ScoreMatrix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", required=True)
    given = parser.parse_args()
    split = open_prepared(given.data).split(given.split, check_files=False)
    of_image = np.array(split.scenes)
    words = caption_classes(split.captions)
    owned = np.zeros((len(split), int(words.max()) + 1), dtype=np.float32)
    owned[split.caption_image, words] = 1.0
    rankings: dict[str, NDArray[np.float32]] = {
        "class": (of_image[:, None] == of_image[split.caption_image][None]).astype(np.float32),
        "words": owned[:, words],
    }
    for name, scores in rankings.items():
        found = recall(ScoreMatrix.from_array(scores), Matches.own(split.caption_image, len(split)))
        print(json.dumps({"by": name, "split": given.split, "images": len(split), **asdict(found)}))


if __name__ == "__main__":
    main()
