"""How many of a class name's ten best images are of that class: UCM's 21 names as queries.

    python docs/results/class_names.py --workspace W --index NAME --classes UCM/classes.csv

The index holds UCM's validation and test images. One JSON line per class, then the number of classes with at least 8.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from cmpagl_core import open_index
from cmpagl_core.search.query import TextQuery

WORDS = {  # classes.csv's names that are several words
    "baseballdiamond": "baseball diamond", "denseresidential": "dense residential", "golfcourse": "golf course",
    "mediumresidential": "medium residential", "mobilehomepark": "mobile home park", "parkinglot": "parking lot",
    "sparseresidential": "sparse residential", "storagetanks": "storage tanks", "tenniscourt": "tennis court",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", default=".")
    parser.add_argument("--index", required=True)
    parser.add_argument("--classes", type=Path, required=True)
    given = parser.parse_args()
    with given.classes.open(newline="") as stream:
        label = {Path(row["image"]).stem: row["class"] for row in csv.DictReader(stream)}
    names = sorted(set(label.values()))
    searcher = open_index(given.index, given.workspace)
    answers = searcher.search([TextQuery(WORDS.get(name, name)) for name in names], 10)
    right = {
        name: sum(label[hit.image.path.stem] == name for hit in hits) for name, hits in zip(names, answers, strict=True)
    }
    for name, count in right.items():
        print(json.dumps({"query": WORDS.get(name, name), "of_its_class": count}))
    print(json.dumps({"classes": len(names), "with_8_or_more": sum(count >= 8 for count in right.values())}))


if __name__ == "__main__":
    main()
