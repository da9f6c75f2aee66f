"""Let two processes meet at the same work, one inside it while the other comes; used by test_two_at_once.py.

    python two_at_once.py WORKSPACE

WORKSPACE holds data/squares, tiny.yaml and backbone.yaml. Prints, as JSON, what each of the two returned and said.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from cmpagl_core.ablation.study import run_study
from cmpagl_core.ablation.trials import StudySetting
from cmpagl_core.ablation.variants import Variant
from cmpagl_core.datasets.building import build  # noqa: F401 - before the forks: it imports pandas
from cmpagl_core.datasets.prepare import prepare
from cmpagl_core.datasets.prepared import open_prepared
from cmpagl_core.datasets.request import PrepareRequest
from cmpagl_core.encoders.split_encoder import SplitEncoder
from cmpagl_core.errors import CmpaglError
from cmpagl_core.evaluation.choosing import RunScorer, params_for
from cmpagl_core.progress import Advance, Progress, Silent
from cmpagl_core.recipe_files import load_recipe
from cmpagl_core.runs import open_run
from cmpagl_core.search.build import IndexRequest, make_index
from cmpagl_core.search.opening import open_searcher
from cmpagl_core.session import Session
from cmpagl_core.training import loop
from cmpagl_core.training.start import TrainRequest, start_training
from cmpagl_core.workspace import Workspace

CPU = torch.device("cpu")
FORK = multiprocessing.get_context("fork")
OFFSETS_S = (0.0, 0.1)
SCENES = 8

Work = Callable[[Progress], str]
Story = dict[str, Any]


class Reporter(Silent):
    """Sends what is said and begun to the parent, and waits for its word where that holds `pause_at`."""

    def __init__(self, parent: Connection, pause_at: str) -> None:
        self._parent, self._pause_at = parent, pause_at

    def say(self, message: str) -> None:
        self._parent.send(("said", message))
        if self._pause_at and self._pause_at in message:
            self._parent.recv()

    @contextmanager
    def task(self, description: str, total: int, unit: str = "") -> Iterator[Advance]:
        self.say(description)
        yield lambda done: None


class Child:
    """A process at its work."""

    def __init__(self, work: Work, pause_at: str = "") -> None:
        self._pipe, there = FORK.Pipe()
        self._process = FORK.Process(target=_work, args=(work, there, pause_at))
        self._process.start()
        self.said: list[str] = []
        self.ended = ""

    def until(self, word: str) -> None:
        """Listen until it says that or ends."""
        while not self.ended:
            kind, text = self._pipe.recv()
            if kind == "ended":
                self.ended = text
                self._process.join()
            else:
                self.said.append(text)
                if word in text:
                    return

    def go_on(self) -> None:
        if not self.ended:
            self._pipe.send("go on")


def _work(work: Work, parent: Connection, pause_at: str) -> None:
    try:
        ended = work(Reporter(parent, pause_at))
    except CmpaglError as error:
        ended = f"{int(error.exit_code)}: {error}"
    parent.send(("ended", ended))
    os._exit(0)


def meet(first: Work, pause_at: str, second: Work) -> Story:
    """The second comes while the first is at that place; the first goes on when the second waits or has ended."""
    one = Child(first, pause_at)
    one.until(pause_at)
    two = Child(second)
    two.until("waiting: ")
    one.go_on()
    one.until("never said")
    two.until("never said")
    return {"first": one.ended, "second": two.ended, "first_said": one.said, "second_said": two.said}


class Bench:
    """Work for two in one workspace."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root)

    def training(self, recipe: str = "tiny", **asked: Any) -> Work:
        path = None if asked.get("resume") else str(self.workspace.root / f"{recipe}.yaml")
        request = TrainRequest(path, **asked, overrides=() if path is None else ("train.epochs=1",))
        return lambda progress: start_training(request, self.workspace, progress, CPU).root.name

    def broken_off(self, name: str) -> str:
        """A training that is killed after its first epoch."""

        def killed(session: loop.Training) -> None:
            loop.keep_state(session)
            os._exit(9)

        def work(progress: Progress) -> str:
            loop.validate_epoch = killed
            return self.training(name=name)(progress)

        process = FORK.Process(target=work, args=(Silent(),))
        process.start()
        process.join()
        return name

    def study(self, progress: Progress) -> str:
        recipe = load_recipe(self.workspace.root / "tiny.yaml", ("train.epochs=1",))
        prepared = open_prepared(self.workspace.root / "data" / "squares")
        setting = StudySetting(self.workspace, prepared, "test", self.workspace.root / "results", CPU, progress)
        return str(run_study([Variant("baseline", recipe, ())], [7], setting).rows[0].mr)

    def session(self, progress: Progress) -> Session:
        return Session(self.workspace, progress, lambda: CPU)

    def index(self, progress: Progress) -> str:
        request = IndexRequest(run="tiny", name="mine")
        return str(make_index(self.session(progress), request).encoded)

    def retrieval(self, progress: Progress) -> str:
        """A question where there is no index yet."""
        return str(len(open_searcher(self.session(progress), run="tiny").gallery))

    def evaluation(self, reranking: str) -> Work:
        """The part of `evaluate --rerank` that chooses a temperature and keeps it beside the run."""

        def work(progress: Progress) -> str:
            run = open_run(self.workspace.find("runs", "tiny"))
            params_for(self.workspace, RunScorer(SplitEncoder(run, self.session(progress))), reranking)
            return reranking

        return work

    def prepared(self, name: str, seed: int) -> Work:
        request = PrepareRequest("synthetic", name=name, seed=seed, count=SCENES, image_size_px=64)
        return lambda progress: str(prepare(request, self.workspace, progress).manifest.complete)

    def prepared_apart(self, offset_s: float) -> Story:
        """Two of one name, the second so much later."""
        name = f"drawn-{OFFSETS_S.index(offset_s)}"
        one = Child(self.prepared(name, seed=0))
        time.sleep(offset_s)
        two = Child(self.prepared(name, seed=1))
        one.until("never said")
        two.until("never said")
        return {"first": one.ended, "second": two.ended, "name": name}


def main(root: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # nobody cuts the power
    loop.draw_curves = lambda root, progress: None  # matplotlib takes longer than the training
    bench = Bench(root)
    named = bench.training(name="mine")
    resumed = bench.training(resume=True, name=bench.broken_off("stopped"))
    return {
        "trainings": meet(bench.training(seed=0), "training tiny on", bench.training(seed=1)),
        "one_name": meet(named, "training tiny on", named),
        "resumed": meet(resumed, "resuming", resumed),
        "backbone": meet(bench.training("backbone"), "caching the frozen", bench.training("backbone")),
        "studies": meet(bench.study, "epoch 1:", bench.study),
        "retrievals": meet(bench.retrieval, "encode images", bench.retrieval),
        "indexings": meet(bench.index, "encode images", bench.index),
        "evaluations": meet(bench.evaluation("sinkhorn"), "choosing", bench.evaluation("dual_softmax")),
        "prepared": [bench.prepared_apart(offset_s) for offset_s in OFFSETS_S],
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
