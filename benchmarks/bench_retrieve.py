"""A cold `cmpagl retrieve` by image, and by text on exported features, against one by text on an index.

`--run DIR` names the run; 300 images are drawn and indexed with it first, which writes its image encoder for ONNX
Runtime where the extra `fast` is installed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from _measure import in_turns_s, report
from bench_before import draw_jpegs

from cmpagl_core.encoders.feature_set import FeatureInfo, FeatureSet, save_feature_set
from cmpagl_core.search.index import open_index

IMAGES, QUERY = 300, "two baseball fields next to a road"


def command(workspace: Path, *arguments: str) -> None:
    """A command in a process of its own."""
    code = "from cmpagl_cli.entry import main; main()"
    line = [sys.executable, "-c", code, "--quiet", "--workspace", str(workspace), *arguments]
    subprocess.run(line, check=True, capture_output=True)


def write_features(workspace: Path, out: Path) -> None:
    """The index's images as exported features, a caption each."""
    index = open_index(workspace / "indexes" / "images")
    ids = tuple(index.image_ids)
    info = FeatureInfo(
        index.info.model, index.info.model_sha256, "drawn", "", "test", "", index.info.preprocessing, "fp32"
    )
    stamps = index.stamps
    assert stamps is not None
    features = FeatureSet(
        image_features=index.image_features,
        text_features=index.image_features,
        text_image=np.arange(len(ids), dtype=np.int64),
        image_ids=ids,
        image_sha256=tuple(stamp.sha256 for stamp in stamps),
        paths=tuple(index.paths),
        captions=tuple(f"caption of {name}" for name in ids),
        info=info,
    )
    save_feature_set(out, features)


def main() -> int:
    """Print one line for each kind of query."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="folder of a run")
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    if asked.run is None:
        print("bench_retrieve needs --run DIR, the folder of a run", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Path(scratch)
        shutil.copytree(asked.run, workspace / "runs" / asked.run.name)
        draw_jpegs(workspace / "images", IMAGES)
        command(workspace, "index", str(workspace / "images"))
        write_features(workspace, workspace / "drawn.safetensors")
        by_text = ("retrieve", QUERY, "--index", "images")
        by_image = ("retrieve", "--image", str(workspace / "images" / "00007.jpg"), "--index", "images")
        on_features = ("retrieve", QUERY, "--features", str(workspace / "drawn.safetensors"))
        met = []
        for title, bar, ours in (
            ("cold retrieve --image", 1 / 3, by_image),
            ("cold retrieve --features", 1 / 2, on_features),
        ):
            taken, peer = in_turns_s(
                lambda ours=ours: command(workspace, *ours), lambda: command(workspace, *by_text), asked.repeats
            )
            met.append(report(title, taken, "s", bar, "cold retrieve by text on an index", peer))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
