"""All that test_ranks.py sees of several processes, in one script, since importing torch takes longer than most of it.

    python ranked.py DATA RECIPE OUT [joint] STORY...

Prints JSON: with `joint`, the differences between the steps of several processes and of one, and what became of the
stories. It runs by itself, since tests may not reach for the network that gloo uses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from joint_batches import compare
from ranked_training import tell


def main(data: Path, recipe: Path, out: Path, wanted: list[str]) -> None:
    stories = tell(data, recipe, out, [one for one in wanted if one != "joint"])
    print(json.dumps({"stories": stories, "joint": compare(data, recipe, out) if "joint" in wanted else {}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
