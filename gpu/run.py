"""What a GPU can say about Gswin in a few minutes: `make gpu MINUTES=12`, one folder of results, resumable.

    python gpu/run.py [--minutes 12] [--results gpu-results] [--ucm NAME|DIR] [--rsicd NAME|DIR]

In this order: the CUDA tests; Gswin-T against timm's Swin-T, eager and compiled; Swin-T distilled from the packaged
EfficientNet-Lite0; UCM trained from there; its evaluation. The last three need the prepared data set ucm, of this
workspace or by its path, and learn from rsicd too where it is prepared.

A step that is done is not run again. Each of the others gets its share of the minutes that are left; what it does not
need, those after it get. RESULTS/STEP.json names the card, the driver, torch, the commit and the command, and
RESULTS/STEP.log has what it printed.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bounded_child import GRACE_S, Ending, run_child

from cmpagl_core.errors import CmpaglError, InterruptedByUserError, MismatchError, UsageError
from cmpagl_core.files import now, parse_json, read_json, write_json
from cmpagl_core.interruption import Interruption
from cmpagl_core.workspace import Workspace

HERE = Path(__file__).parent
RUN_NAME = "gpu-swin-t"

Status = Literal["done", "failed", "out of time", "left out"]
Runner = Callable[[Sequence[str], Path, float], Ending]


@dataclass(frozen=True)
class Machine:
    """What every result names. Results of two machines do not belong into one folder."""

    card: str
    driver: str
    torch: str
    commit: str


@dataclass(frozen=True)
class Step:
    """One command, which prints JSON on stdout: a document, or one line for each measurement.

    weight: its share of the time, beside those of the steps that are left. needs: the step that must be done before.
    missing: why it cannot run at all.
    """

    name: str
    weight: float
    command: tuple[str, ...]
    needs: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Outcome:
    """RESULTS/STEP.json. results: what the command printed, as far as it came."""

    step: str
    status: Status
    why: str
    started_at: str
    elapsed_s: float
    limit_s: float
    command: str
    machine: Machine
    results: Any


def steps(results: Path, ucm: Path | None, rsicd: Path | None, device: str, recipe: Path) -> list[Step]:
    """All steps in their order; `{seconds}` in a command becomes what it may take."""
    python = sys.executable
    cli = (python, "-m", "cmpagl_cli", "--workspace", str(results / "workspace"), "--device", device, "--quiet")
    bench = (python, "benchmarks/bench_cuda.py", "--device", device, *(("--images", "1") if device == "cpu" else ()))
    learn = (python, "gpu/learn.py", str(recipe), "--results", str(results), "--device", device, "--ucm", str(ucm))
    learn = (*learn, *(("--rsicd", str(rsicd)) if rsicd else ()))
    missing = "" if ucm else "the data set ucm is not prepared: `cmpagl prepare ucm`, or name it with --ucm"
    tests = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/models/test_cuda.py")
    return [
        Step("cuda-tests", 1.0, tests),
        Step("bench-eager-encode", 0.7, (*bench, "--work", "encode")),
        Step("bench-eager-train", 0.7, (*bench, "--work", "train")),
        Step("bench-compiled-encode", 1.5, (*bench, "--work", "encode", "--compiled")),
        Step("bench-compiled-train", 2.0, (*bench, "--work", "train", "--compiled")),
        Step("distil", 4.0, (*learn, "--part", "distil", "--seconds", "{seconds}"), "", missing),
        Step(
            "train", 3.0, (*learn, "--part", "train", "--name", RUN_NAME, "--seconds", "{seconds}"), "distil", missing
        ),
        Step("evaluate", 0.7, (*cli, "evaluate", "--run", RUN_NAME, "--format", "json"), "train", missing),
    ]


def run_all(
    todo: Sequence[Step],
    results: Path,
    machine: Machine,
    seconds: float,
    runner: Runner,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Run what is not done, within the time. Returns all outcomes there are, of earlier calls too.

    Raises MismatchError for a folder of another machine or commit, InterruptedByUserError when stopped.
    """
    found = {step.name: read_outcome(results, step.name) for step in todo}
    for outcome in found.values():
        if outcome is not None and outcome.machine != machine:
            raise MismatchError(
                f"{results} has results of {_said(outcome.machine)}, not of {_said(machine)}",
                hint="name another folder",
            )
    deadline = clock() + seconds
    left = [step for step in todo if not _is_done(found[step.name])]
    for index, step in enumerate(left):
        before = found.get(step.needs)
        if before is not None and before.status != "done" and not step.missing:
            step = replace(step, missing=f"{step.needs} is not done")
        weights = sum(one.weight for one in left[index:] if not one.missing)
        share = (deadline - clock() - GRACE_S) * step.weight / max(weights, step.weight)
        outcome = run_step(step, results, machine, share, runner, clock)
        found[step.name] = outcome
        write_json(results / f"{step.name}.json", asdict(outcome))
        say(_line(outcome))
    return [outcome for outcome in found.values() if outcome is not None]


def run_step(
    step: Step, results: Path, machine: Machine, limit_s: float, runner: Runner, clock: Callable[[], float]
) -> Outcome:
    """One step, stopped after so many seconds. Raises InterruptedByUserError when stopped by the user."""
    command = [part.replace("{seconds}", f"{max(limit_s, 0):.0f}") for part in step.command]
    started_at, began = now(), clock()

    def outcome(status: Status, why: str, printed: Any = None) -> Outcome:
        line = " ".join(("python", *command[1:]))
        return Outcome(step.name, status, why, started_at, clock() - began, limit_s, line, machine, printed)

    if step.missing:
        return outcome("left out", step.missing)
    if limit_s <= 1:
        return outcome("out of time", "the minutes were over before it began")
    ending = runner(command, results / f"{step.name}.log", limit_s)
    if ending.interrupted:
        raise InterruptedByUserError(f"stopped in {step.name}", hint="run the same command again to go on")
    printed = read_printed(ending.stdout)
    if ending.timed_out:
        return outcome("out of time", f"stopped after {limit_s:.0f} s; run the same command again to go on", printed)
    if ending.code != 0:
        return outcome("failed", f"exit code {ending.code}; see {step.name}.log", printed)
    return outcome("done", "", printed)


def read_printed(stdout: str) -> Any:
    """What a step printed: one JSON document, else a list of the lines, each parsed where it is JSON."""
    try:
        return parse_json(stdout)
    except ValueError:
        return [_parsed(line) for line in stdout.splitlines() if line.strip()]


def read_outcome(results: Path, name: str) -> Outcome | None:
    """The outcome of an earlier call. Raises DataError for a broken file."""
    path = results / f"{name}.json"
    if not path.is_file():
        return None
    content = read_json(path)
    return Outcome(**{**content, "machine": Machine(**content["machine"])})


def machine_here(device: str) -> Machine:
    """The card, its driver, torch and the commit. Raises UsageError without such a device."""
    import torch

    from cmpagl_core.device import choose_device
    from cmpagl_core.runs import current_code

    commit = current_code().commit or "unknown"
    if device == "cpu":  # a rehearsal
        return Machine(platform.processor() or platform.machine(), "none", torch.__version__, commit)
    if not torch.cuda.is_available():
        raise UsageError(
            "there is no CUDA device here, so nothing was run",
            hint="start it on a machine with one, or rehearse with --device cpu",
        )
    return Machine(torch.cuda.get_device_name(choose_device(device)), _driver(), torch.__version__, commit)


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    asked = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.split("\n")[0].strip() or "unknown"


def _data(workspace: Workspace, name: str) -> Path | None:
    """The folder of a prepared data set, None where there is none."""
    try:
        return workspace.find("data", name).absolute()
    except CmpaglError:
        return None


def _is_done(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.status == "done"


def _parsed(line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError:
        return line


def _said(machine: Machine) -> str:
    return f"{machine.card}, torch {machine.torch}, commit {machine.commit[:8]}"


def _line(outcome: Outcome) -> str:
    return f"{outcome.step}: {outcome.status}, {outcome.elapsed_s:.0f} s" + (f" ({outcome.why})" if outcome.why else "")


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0, help="for all steps together")
    parser.add_argument("--results", type=Path, default=Path("gpu-results"))
    parser.add_argument("--ucm", default="ucm", metavar="NAME|DIR", help="the prepared data set (default: ucm)")
    parser.add_argument("--rsicd", default="rsicd", metavar="NAME|DIR", help="distilled from too, where it is there")
    parser.add_argument("--device", default="cuda", help="cpu rehearses it, with a tiny --recipe")
    parser.add_argument("--recipe", type=Path, default=HERE / "swin-t.yaml")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all. Returns the exit code: 0 unless a step failed, or nothing could be run."""
    asked, interruption = options(argv), Interruption()
    try:
        with interruption.caught():
            machine = machine_here(asked.device)
            workspace = Workspace.locate()
            ucm, rsicd = _data(workspace, asked.ucm), _data(workspace, asked.rsicd)
            results = asked.results.absolute()
            todo = steps(results, ucm, rsicd, asked.device, asked.recipe.absolute())
            outcomes = run_all(todo, results, machine, 60 * asked.minutes, run_child)
    except CmpaglError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    done = sum(_is_done(outcome) for outcome in outcomes)
    print(f"{done} of {len(todo)} steps are done, on {_said(machine)}: {results}")
    return int(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
