"""Memory and time of a training step by batch size: plain, with activations computed again, and with GradCache.

    python benchmarks/bench_large_batch.py [--recipe ucm] [--pairs 16 64] [--modes plain cached]

Each step runs in a process of its own, with random images, weights and captions of usual length; its memory is the
peak of the whole process, weights, gradients, AdamW's moments and the batch's images included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from cmpagl_core.datasets.loading import PairBatch
from cmpagl_core.device import usable_precision
from cmpagl_core.models.bert import bert_shape
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.models.summary import BERT_VOCABULARY
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import load_recipe
from cmpagl_core.training.learner import Learner, make_learner
from cmpagl_core.training.step import accumulate, update

GIB = 2**30
CHUNK = 32
MODES = {
    "plain": (),
    "recomputed": ("train.checkpoint_activations=true",),
    "cached": (f"train.chunk_size={CHUNK}",),
    "both": (f"train.chunk_size={CHUNK}", "train.checkpoint_activations=true"),
}
RANDOM = ("image_encoder.weights=random", "text_encoder.weights=random")
CAPTION = "there are many buildings and green trees near a road with some cars in it"


def learner_of(recipe: Recipe, device: torch.device) -> Learner:
    captions = [CAPTION]
    tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, captions)
    shape = bert_shape(recipe.text_encoder, BERT_VOCABULARY)
    model = build_model(recipe, shape.vocab_size, pretrained=False, text_shape=shape)
    return make_learner(
        recipe, tokenizer, device, use_kernels(model, device), {n: "new" for n, _ in model.named_parameters()}
    )


def batch_of(learner: Learner, pairs: int) -> PairBatch:
    """Random images; captions of 8 to 15 words, of which few are alike."""
    generator = torch.Generator().manual_seed(0)
    size, words = learner.recipe.data.image_size_px, CAPTION.split()
    lengths = torch.randint(8, len(words) + 1, (pairs,), generator=generator).tolist()
    places = [torch.randint(len(words), (length,), generator=generator).tolist() for length in lengths]
    captions = tuple(" ".join(words[place] for place in one) for one in places)
    tokens = learner.tokenizer(captions)
    images = torch.randn(pairs, 3, size, size, generator=generator)
    return PairBatch(images, tokens.input_ids, tokens.attention_mask, torch.eye(pairs, dtype=torch.bool), captions)


def run_step(recipe: str, mode: str, pairs: int, device: torch.device) -> dict[str, object]:
    """One step, after one of two pairs that sets up the optimiser."""
    overrides = [one for one in MODES[mode] if not one.startswith("train.chunk_size") or pairs > CHUNK]
    resolved = load_recipe(recipe, (*RANDOM, f"train.batch_size={pairs}", *overrides))
    learner = learner_of(resolved, device)
    learner.model.train()
    accumulate(learner, [batch_of(learner, 2)], epoch=0, step=0, with_shares=False)
    update(learner, step=0, share=0.0)
    batch = batch_of(learner, pairs)
    started_at, cpu_s = time.monotonic(), time.process_time()
    accumulate(learner, [batch], epoch=0, step=0, with_shares=False)
    update(learner, step=0, share=0.0)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elapsed_s, cpu_s = time.monotonic() - started_at, time.process_time() - cpu_s
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_bytes()
    return {
        "recipe": recipe,
        "mode": mode,
        "pairs": pairs,
        "gib": round(used / GIB, 2),
        "seconds": round(elapsed_s, 1),
        "cpu_seconds": round(cpu_s, 1),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "precision": usable_precision(device, resolved.train.precision),
    }


def _peak_bytes() -> int:
    """The most memory that this process has had; a parent's, as in getrusage, is not counted."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not say VmHWM")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="ucm")
    parser.add_argument("--pairs", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", action="store_true", help="in this process; used by the others")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(run_step(given.recipe, given.modes[0], given.pairs[0], torch.device(given.device))))
        return 0
    for pairs in given.pairs:
        for mode in given.modes:
            arguments = ["--recipe", given.recipe, "--pairs", str(pairs), "--modes", mode, "--device", given.device]
            subprocess.run([sys.executable, __file__, *arguments, "--one"], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
