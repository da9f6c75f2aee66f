"""Train in child processes that kill themselves at given moments, then resume; used by test_killing.py.

    python killed_training.py DATA RECIPE OUT MOMENT...

A moment is EVENT:NUMBER, where the event is `step` (after an optimiser step), `before` or `after` (a file's rename),
or `ctrl-c` (an interrupt during a step). Prints, as JSON, what became of each and the sha256 of its final weights.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.errors import CmpaglError
from cmpagl_core.progress import Silent
from cmpagl_core.recipe_files import load_recipe
from cmpagl_core.runs import open_run
from cmpagl_core.training import loop


def strike_at(moment: str) -> None:
    """Arrange for this process to be struck at its moment."""
    event, _, number = moment.partition(":")
    left = int(number)

    def strike(kind: str) -> None:
        nonlocal left
        if kind == event:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGINT if event == "ctrl-c" else signal.SIGKILL)

    replace, update = Path.replace, loop.update

    def struck_replace(self: Path, target: Path) -> Path:
        strike("before")
        result = replace(self, target)
        strike("after")
        return result

    def struck_update(*arguments: object) -> float:
        strike("ctrl-c")
        norm = update(*arguments)  # type: ignore[arg-type]
        strike("step")
        return norm

    Path.replace = struck_replace  # type: ignore[method-assign, assignment]
    loop.update = struck_update


def train(data: Path, recipe: Path, root: Path, moment: str | None) -> str:
    """Train, or resume when no moment is given. Returns how it ended."""
    torch.set_num_threads(1)
    loop.STATE_EVERY_S = 0.0
    os.fsync = lambda descriptor: None  # a killed process loses nothing that it wrote; only a power cut would
    loop.draw_curves = lambda root, progress: None  # matplotlib takes longer than the training
    if moment is not None:
        strike_at(moment)
    resume = moment is None and (root / "resume" / "state.safetensors").is_file()
    try:
        loop.fit(
            load_recipe(recipe),
            open_prepared(data),
            root,
            Silent(),
            torch.device("cpu"),
            resume,
            data / "cache",
            "tiny",
        )
    except CmpaglError as error:
        return f"{int(error.exit_code)}: {error}"
    return "finished"


def in_child(data: Path, recipe: Path, root: Path, moment: str | None) -> str:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, train(data, recipe, root, moment).encode())
        os._exit(0)
    os.close(writer)
    status = os.waitpid(child, 0)[1]
    said = os.read(reader, 10_000).decode()
    os.close(reader)
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else said


def main(data: Path, recipe: Path, out: Path, moments: list[str]) -> dict[str, dict[str, str]]:
    results = {}
    for moment in moments:
        root = out / moment.replace(":", "-")
        ended = in_child(data, recipe, root, moment)
        resumed = in_child(data, recipe, root, None)
        results[moment] = {"ended": ended, "resumed": resumed, "weights": open_run(root).info.weights_sha256}
    return results


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])))
