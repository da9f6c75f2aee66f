"""Images a second of a training step: two processes of one thread against one process of two, the same joint batch.

Also how much of the exchange of gradients is hidden behind the backward pass: the share of the time of gloo's
all-reduces in which the same process still computed gradients, by torch's profiler. Loading is not in it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _measure import CPU, compare, note

from cmpagl_core.datasets.loading import JointBatch, PairBatch
from cmpagl_core.models.cmpagl import build_model
from cmpagl_core.models.kernels.use import use_kernels
from cmpagl_core.models.tokenizer import load_tokenizer
from cmpagl_core.ranks import ALONE, Ranks
from cmpagl_core.recipe_files import parse_recipe
from cmpagl_core.training.learner import Learner, make_learner
from cmpagl_core.training.step import accumulate, update

PAIRS, REPEATS = 32, 5
WORDS = "there are many buildings and green trees near a road with some cars in it"
RECIPE = """
image_encoder: {size: custom, width: 48, depths: [1, 1, 2, 1], num_heads: [1, 2, 4, 8]}
text_encoder: {size: minilm-l6}
data: {image_size_px: 112}
train: {precision: fp32, batch_size: 32}
"""


def learner_of(ranks: Ranks) -> Learner:
    recipe = parse_recipe(RECIPE, "bench", ())
    tokenizer = load_tokenizer(recipe.text_encoder, recipe.data.max_caption_tokens, [WORDS])
    model = use_kernels(build_model(recipe, tokenizer.vocab_size), CPU).train()
    return make_learner(recipe, tokenizer, CPU, model, model.parameter_origins(), ranks)


def batch_of(learner: Learner, ranks: Ranks) -> PairBatch:
    """This process's part of the joint batch."""
    tokens = learner.tokenizer([WORDS] * PAIRS)
    images = torch.randn(PAIRS, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    positives, own = torch.eye(PAIRS, dtype=torch.bool), ranks.part(PAIRS)
    part = PairBatch(
        images[own], tokens.input_ids[own], tokens.attention_mask[own], positives[own], ("",) * len(images[own])
    )
    if ranks.alone:
        return part
    return replace(part, joint=JointBatch(ranks.sizes(PAIRS), own.start, positives[own]))


def step_of(ranks: Ranks) -> Callable[[], None]:
    learner = learner_of(ranks)
    batch = batch_of(learner, ranks)

    def step() -> None:
        accumulate(learner, [batch], epoch=0, step=0, with_shares=False)
        update(learner, step=0, share=0.0)

    return step


def serve(rank: int, count: int, store: str, pipe: Connection) -> None:
    """A process: does a step when told to, and says how long it took, or how much of the exchange was hidden."""
    torch.set_num_threads(2 // count)
    warnings.filterwarnings("ignore", "Grad strides do not match")  # as `join_ranks` does
    ranks = ALONE
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
        ranks = Ranks(rank, count)
    step = step_of(ranks)
    while (told := pipe.recv()) != "end":
        if told == "profile":
            pipe.send(hidden_share(step))
            continue
        started_at = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - started_at)


def hidden_share(step: Callable[[], None]) -> tuple[float, float]:
    """Share of all-reduce time during the backward pass, and its seconds."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    events = [(one.name, one.time_range.start, one.time_range.end) for one in profile.events()]
    reduced = [(start, end) for name, start, end in events if name == "gloo:all_reduce"]
    backward = [(start, end) for name, start, end in events if name.startswith("autograd::engine::evaluate_function")]
    until = max(end for _, end in backward)
    total = sum(end - start for start, end in reduced)
    hidden = sum(max(0.0, min(end, until) - start) for start, end in reduced)
    return hidden / max(total, 1e-9), total / 1e6


class Group:
    """The processes of one training."""

    def __init__(self, count: int, folder: Path) -> None:
        context = get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(count):
            pipe, other = context.Pipe()
            process = context.Process(
                target=serve, args=(rank, count, str(folder / f"store-{count}"), other), daemon=True
            )
            process.start()
            self._pipes.append(pipe)
            self._processes.append(process)

    def ask(self, what: str) -> list[Any]:
        for pipe in self._pipes:
            pipe.send(what)
        return [pipe.recv() for pipe in self._pipes]

    def end(self) -> None:
        for pipe in self._pipes:
            pipe.send("end")
        for process in self._processes:
            process.join()


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        one, two = Group(1, Path(folder)), Group(2, Path(folder))
        taken: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(REPEATS + 1):
            for count, group in ((1, one), (2, two)):
                elapsed_s = max(group.ask("step"))
                if turn:
                    taken[count].append(elapsed_s)
        shares = [two.ask("profile") for _ in range(REPEATS)]
        one.end()
        two.end()
    rates = {count: PAIRS / statistics.median(times) for count, times in taken.items()}
    title = f"training step of {PAIRS} pairs, two processes of one thread"
    compare(title, rates[2], "images/s", "one process of two threads", rates[1], more_is_better=True)
    ratios = sorted(one / two for one, two in zip(taken[1], taken[2], strict=True))
    note("the same, ratio of each turn: lowest", ratios[0], "x")
    note("the same, ratio of each turn: highest", ratios[-1], "x")
    flat = [pair for turn in shares for pair in turn]
    note("gradients exchanged during the backward pass", statistics.median(share for share, _ in flat), "share")
    note("all-reduces of a step, one after another", statistics.median(total for _, total in flat), "s profiled")
    return 0


if __name__ == "__main__":
    sys.exit(main())
