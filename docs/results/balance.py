"""The cosine ranking of runs with and without balanced features, on one split.

    python docs/results/balance.py --workspace W --data ucm --split test ucm-seed0 ucm-seed1 ucm-seed2

One JSON line per run. Without: the two coordinates of the balance are left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.encoders.split_encoder import SplitEncoder
from cmpagl_core.evaluation.recall import Matches, recall
from cmpagl_core.ranking.scores import ScoreMatrix
from cmpagl_core.recipe import BALANCE_DIMS
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
        found = SplitEncoder(open_run(given.workspace / "runs" / name)).features(split)
        images, texts = found.image_features, found.text_features
        plain = [rows[:, :-BALANCE_DIMS] for rows in (images, texts)]
        plain = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in plain]
        mr = [recall(ScoreMatrix.from_features(*sides), matches).mr for sides in ((images, texts), plain)]
        print(json.dumps({"run": name, "split": given.split, "balanced": mr[0], "without": mr[1]}), flush=True)


if __name__ == "__main__":
    main()
