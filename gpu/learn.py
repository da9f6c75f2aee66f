"""Swin-T distilled, or trained on UCM from there, for as many epochs as fit into the time: a step of `gpu/run.py`.

Epochs are reckoned from a rate that is measured first, since a schedule has to end; both are in RESULTS/plan-PART.json,
so that a step that was stopped goes on with the same epochs. Prints what came of it as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cmpagl_core.datasets.prepared import PreparedDataset, open_prepared
from cmpagl_core.device import choose_device
from cmpagl_core.errors import CmpaglError
from cmpagl_core.files import read_json, write_json
from cmpagl_core.interruption import Interruption
from cmpagl_core.progress import Progress, Silent
from cmpagl_core.recipe import Recipe
from cmpagl_core.recipe_files import load_recipe
from cmpagl_core.runs import INFO_FILE, open_run
from cmpagl_core.training.distill import DistillJob, distill_job, distilled_start, measure_distillation
from cmpagl_core.training.forecast import forecast
from cmpagl_core.training.resume import has_state
from cmpagl_core.training.start import TrainRequest, start_training
from cmpagl_core.workspace import Workspace

USED = 0.85
"""Share of the time that is planned for; the rest is for what a measured rate does not see."""


class Told(Silent):
    """Progress as lines on stderr, which end in the step's log."""

    def say(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)


def distil(asked: argparse.Namespace, device: torch.device, workspace: Workspace, progress: Progress) -> dict[str, Any]:
    """Measure, plan, distil. Returns the plan and what the start says of itself."""
    began = time.monotonic()
    path = asked.results / "plan-distil.json"
    if not path.is_file():
        job = _job(asked, device, _recipe(asked, 1, 1))
        rate = measure_distillation(job, workspace.cache, progress)
        left_s = USED * asked.seconds - (time.monotonic() - began)
        plan = {"rate": asdict(rate), "seconds": left_s, "epochs": min(asked.most, rate.epochs_within(left_s))}
        write_json(path, plan)
    plan = read_json(path)
    job = _job(asked, device, _recipe(asked, plan["epochs"], 1))
    start = distilled_start(job, workspace.cache, progress)
    return {"plan": plan, "key": start.key, "left_out": job.left_out, **start.about}


def train(asked: argparse.Namespace, device: torch.device, workspace: Workspace, progress: Progress) -> dict[str, Any]:
    """Measure, plan, train from the distilled start. Returns the plan and the run's record."""
    began = time.monotonic()
    distilled = read_json(asked.results / "plan-distil.json")["epochs"]
    path = asked.results / "plan-train.json"
    if not path.is_file():
        predicted = forecast(_request(asked, distilled, 1), workspace, progress, device)
        left_s = USED * asked.seconds - (time.monotonic() - began)
        epochs = max(1, min(asked.most, int(left_s / predicted.epoch_s)))
        write_json(path, {"forecast": predicted.to_json(), "seconds": left_s, "epochs": epochs})
    plan, root = read_json(path), workspace.folder("runs", asked.name)
    if (root / INFO_FILE).is_file():  # stopped after the training, before its result was written
        return {"plan": plan, "run": asdict(open_run(root).info)}
    resumed = has_state(root)
    request = TrainRequest(name=asked.name, resume=True) if resumed else _request(asked, distilled, plan["epochs"])
    run = start_training(request, workspace, progress, device)
    return {"plan": plan, "run": asdict(run.info)}


def _recipe(asked: argparse.Namespace, distilled: int, epochs: int) -> Recipe:
    return load_recipe(asked.recipe, _overrides(asked, distilled, epochs))


def _overrides(asked: argparse.Namespace, distilled: int, epochs: int) -> tuple[str, ...]:
    sources = json.dumps([str(path) for path in _sources(asked)])
    return (
        f"data.dataset={json.dumps(str(asked.ucm))}",
        f"distill.datasets={sources}",
        f"distill.epochs={distilled}",
        f"train.epochs={epochs}",
    )


def _request(asked: argparse.Namespace, distilled: int, epochs: int) -> TrainRequest:
    return TrainRequest(str(asked.recipe), name=asked.name, overrides=_overrides(asked, distilled, epochs))


def _job(asked: argparse.Namespace, device: torch.device, recipe: Recipe) -> DistillJob:
    named: list[PreparedDataset] = [open_prepared(path) for path in _sources(asked)]
    job = distill_job(recipe, open_prepared(asked.ucm), named, device)
    assert job is not None
    return job


def _sources(asked: argparse.Namespace) -> list[Path]:
    return [path for path in (asked.rsicd, asked.ucm) if path is not None]


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--part", choices=("distil", "train"), required=True)
    parser.add_argument("--seconds", type=float, required=True, help="for this step, with its measuring")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--ucm", type=Path, required=True)
    parser.add_argument("--rsicd", type=Path)
    parser.add_argument("--name", default="gpu", help="of the run")
    parser.add_argument("--most", type=int, default=300, help="epochs, however much time there is")
    parser.add_argument("--device", default="cuda")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Do one part. Returns the exit code."""
    asked, interruption = options(argv), Interruption()
    workspace = Workspace(asked.results / "workspace")
    try:
        with interruption.caught():
            work = distil if asked.part == "distil" else train
            print(json.dumps(work(asked, choose_device(asked.device), workspace, Told())))
    except CmpaglError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
