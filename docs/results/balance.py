"""The cosine ranking of runs balanced and not, on one split.

    python docs/results/balance.py --workspace W --data ucm --split test ucm-seed0 ucm-seed1 ucm-seed2

One JSON line per run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.encoders.split_encoder import SplitEncoder
from cmpagl_core.evaluation.recall import Matches, recall
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.runs import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path())
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("runs", nargs="+")
    given = parser.parse_args()
    split = open_prepared(given.workspace / "data" / given.data).split(given.split)
    matches = Matches.own(split.caption_image, len(split))
    for name in given.runs:
        encoder = SplitEncoder(open_run(given.workspace / "runs" / name))
        plain = encoder.features(split)
        sides = plain.image_features, plain.text_features
        mr = [
            recall(ScoreMatrix.from_features(*sides, less=less), matches).mr
            for less in (encoder.potentials(plain), None)
        ]
        print(json.dumps({"run": name, "split": given.split, "balanced": mr[0], "without": mr[1]}), flush=True)


if __name__ == "__main__":
    main()
