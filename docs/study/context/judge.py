"""Recall on context captions and on local captions apart, for the trainings of section (g)'s controlled question.

    python docs/study/context/judge.py WORKSPACE --out docs/study/context/context.json

Reads the runs that `cmpagl ablate docs/study/context/recipe.yaml` left in WORKSPACE, with `--study global-window` and
`--study global-window-parts`. A caption of a test image is right if it scores highest among the captions of its kind,
which differ in one word. Variants are compared by what each image got right, averaged over seeds; p by flipping signs
over images, intervals by bootstrap.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scenes import KIND_OF, KINDS

from cmpagl_core.ablation.trials import VARIANT_RUNS
from cmpagl_core.datasets.prepared import DataSplit, open_prepared
from cmpagl_core.encoders.decode import decoded_batches, image_decoder
from cmpagl_core.imagery.images import decoded_px, to_pixel_values
from cmpagl_core.progress import Silent
from cmpagl_core.runs import Run, list_runs
from cmpagl_core.workspace import Workspace

CPU = torch.device("cpu")
SAMPLES = 10_000


@torch.inference_mode()
def right_captions(run: Run, split: DataSplit) -> np.ndarray:
    """For each caption of the split, whether it scores highest among its kind for its own image: bool [M]."""
    loaded = run.load(CPU)
    size_px = loaded.recipe.data.image_size_px
    decode = image_decoder(lambda image: to_pixel_values(image, size_px), decoded_px(size_px))
    batches = decoded_batches(split.images, decode, 64, 1)
    images = torch.cat([loaded.model.encode_images(batch.pixel_values).features for batch in batches])
    texts = {}
    for name, kind in KINDS.items():
        tokens = loaded.tokenizer(kind.captions)
        texts[name] = loaded.model.encode_texts(tokens.input_ids, tokens.attention_mask).features
    found = []
    for caption, row in zip(split.captions, split.caption_image.tolist(), strict=True):
        kind = KIND_OF[caption]
        best = int((texts[kind] @ images[row]).argmax())
        found.append(KINDS[kind].captions[best] == caption)
    return np.array(found)


def shares(right: np.ndarray, split: DataSplit) -> dict[str, np.ndarray]:
    """Share of right captions of each image [N]: of its context captions, of its local ones."""
    context = np.array([KINDS[KIND_OF[caption]].context for caption in split.captions])
    parts = {}
    for name, chosen in (("context", context), ("local", ~context)):
        rows = split.caption_image[chosen]
        parts[name] = np.bincount(rows, right[chosen], len(split)) / np.bincount(rows, minlength=len(split))
    return parts


def compared(by_seed: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """by_seed: differences [seeds, N]. Their mean in points, 95 % intervals, and p of a test that flips images' signs.

    ci95 draws images alone; ci95_seeds draws seeds too, which is wide with three of them.
    """
    seeds, images = by_seed.shape
    differences = by_seed.mean(axis=0)  # [N]
    mean = differences.mean()
    drawn = [differences[rng.integers(images, size=images)].mean() for _ in range(SAMPLES)]
    both = [
        by_seed[rng.integers(seeds, size=seeds)][:, rng.integers(images, size=images)].mean() for _ in range(SAMPLES)
    ]
    signs = rng.choice([-1.0, 1.0], size=(SAMPLES, len(differences)))
    p = (1 + int((np.abs((signs * differences).mean(axis=1)) >= abs(mean) - 1e-12).sum())) / (1 + SAMPLES)
    return {
        "points": round(100 * float(mean), 2),
        "ci95": _interval(drawn),
        "ci95_seeds": _interval(both),
        "by_seed": [round(100 * float(one), 2) for one in by_seed.mean(axis=1)],
        "p": round(p, 4),
    }


def _interval(drawn: list[float]) -> list[float]:
    return [round(100 * float(edge), 2) for edge in np.percentile(drawn, [2.5, 97.5])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    workspace, rng = Workspace(given.workspace), np.random.default_rng(0)
    split = open_prepared(workspace.find("data", "context")).split("test")
    kinds = np.array([KIND_OF[caption] for caption in split.captions])
    by_variant: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    times: dict[str, list[float]] = defaultdict(list)
    for run in list_runs(workspace, Silent(), VARIANT_RUNS):
        by_variant[run.info.recipe_name][run.info.seed] = right_captions(run, split)
        times[run.info.recipe_name].append(run.info.elapsed_s)
    variants = {}
    for name, runs in sorted(by_variant.items()):
        per_seed = [shares(right, split) for _, right in sorted(runs.items())]
        variants[name] = {
            "seeds": sorted(runs),
            "context": [round(100 * one["context"].mean(), 2) for one in per_seed],
            "local": [round(100 * one["local"].mean(), 2) for one in per_seed],
            "kinds": {
                kind: round(100 * float(np.mean([right[kinds == kind].mean() for right in runs.values()])), 2)
                for kind in KINDS
            },
            "minutes": round(sum(times[name]) / 60, 1),
        }
    document: dict[str, Any] = {
        "chance": {name: round(100 / len(kind.captions), 1) for name, kind in KINDS.items()},
        "context_kinds": [name for name, kind in KINDS.items() if kind.context],
        "images": len(split),
        "variants": variants,
        "differences": {},
    }
    for name in variants:
        shared = sorted(set(by_variant[name]) & set(by_variant["baseline"]))
        if name == "baseline" or not shared:
            continue
        both = [(shares(by_variant["baseline"][s], split), shares(by_variant[name][s], split)) for s in shared]
        gain = {part: np.stack([on[part] - off[part] for on, off in both]) for part in ("context", "local")}
        document["differences"][f"baseline minus {name}"] = {
            "seeds": shared,
            **{part: compared(values, rng) for part, values in gain.items()},
            "interaction": compared(gain["context"] - gain["local"], rng),
        }
    text = json.dumps(document, indent=2) + "\n"
    if given.out is None:
        sys.stdout.write(text)
    else:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
