"""Train in several processes that are stopped, killed and resumed in other numbers; run by ranked.py.

A story is COUNT[:RANK:SIGNAL] and the next after a comma: `2:1:TERM,1` trains in 2 processes, of which rank 1 is sent
SIGTERM in its fifth step, then resumes in one.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked import fork

from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.errors import CmpaglError
from cmpagl_core.progress import Silent
from cmpagl_core.ranks import ALONE, Ranks
from cmpagl_core.recipe_files import load_recipe
from cmpagl_core.training import loop
from cmpagl_core.training.resume import has_state

CPU = torch.device("cpu")
STRUCK_STEP = 5


def strike(number: int) -> None:
    """Arrange for a signal to this process in the middle of a step."""
    accumulate, left = loop.accumulate, STRUCK_STEP

    def struck(*arguments: Any, **settings: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)
        return accumulate(*arguments, **settings)

    loop.accumulate = struck


def train(data: Path, recipe: Path, root: Path, ranks: Ranks) -> str:
    """Train or resume as one process of `ranks`. Returns how it ended."""
    torch.set_num_threads(1)
    loop.STATE_EVERY_S = 0.0
    os.fsync = lambda descriptor: None
    loop.draw_curves = lambda root, progress: None
    try:
        if ranks.first:
            prepared, resume = open_prepared(data), has_state(root)
            cache = data / "cache" / root.name
            loop.fit(load_recipe(recipe), prepared, root, Silent(), CPU, resume, cache, "tiny", ranks=ranks)
        else:
            loop.join_training(ranks, CPU)
    except CmpaglError as error:
        return f"{int(error.exit_code)}: {error}"
    return "finished"


def child(data: Path, recipe: Path, root: Path, rank: int, part: str, store: Path) -> str:
    count, _, struck = part.partition(":")
    if int(count) == 1:
        ranks = ALONE
    else:
        link = dist.FileStore(str(store), int(count))
        dist.init_process_group("gloo", store=link, rank=rank, world_size=int(count))
        ranks = Ranks(rank, int(count), CPU, dist.PrefixStore("cmpagl", link))
    victim, _, name = struck.partition(":")
    if struck and int(victim) == rank:
        strike(getattr(signal, f"SIG{name}"))
    return train(data, recipe, root, ranks)


def play(data: Path, recipe: Path, root: Path, part: str, store: Path) -> dict[str, Any]:
    """One part of a story: what became of each process, and the seconds from the first one's end to the last one's."""
    running = []
    for rank in range(int(part.partition(":")[0])):
        reader, writer = os.pipe()

        def work(rank: int = rank, writer: int = writer) -> None:
            os.write(writer, child(data, recipe, root, rank, part, store).encode())

        process = fork(work)
        os.close(writer)
        running.append((process, reader))
    ends, ended_at = {}, []
    while len(ends) < len(running):
        process, status = os.wait()
        ended_at.append(time.monotonic())
        reader = dict(running)[process]
        said = os.read(reader, 10_000).decode()
        os.close(reader)
        ends[process] = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else said
    return {
        "ends": [ends[process] for process, _ in running],
        "seconds": ended_at[-1] - ended_at[0],
        "unfinished": has_state(root),
    }


def tell(data: Path, recipe: Path, out: Path, stories: list[str]) -> dict[str, list[dict[str, Any]]]:
    """What became of the processes of each part of the stories."""
    found: dict[str, list[dict[str, Any]]] = {}
    for number, story in enumerate(stories):
        root = out / f"run{number}"
        parts = story.split(",")
        found[story] = [
            play(data, recipe, root, part, out / f"store-{number}-{place}") for place, part in enumerate(parts)
        ]
    return found
