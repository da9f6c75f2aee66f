"""What a user waits for, beside another version of the code: the quickstart, indexing JPEGs, evaluating a run again.

Each row runs the same command of two checkouts in turns, each in a process of its own. `--before DIR` is the other one
(`git worktree add DIR COMMIT`); without it nothing is measured. A run is of one format, so each version indexes with a
run of its own (`--run`, `--before-run`), of the same recipe. `--busy` adds one process that computes all the time.
The ratio is of wall-clock time; the peer's and our CPU seconds are noted beside it, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _measure import compare, report
from PIL import Image

HERE = Path(__file__).parent.parent
JPEGS, SIDE_PX = 2_000, 256
QUICKSTART = (
    ("prepare", "synthetic", "--count", "800"),
    ("train", "quickstart"),
    ("evaluate",),
    ("export", "--split", "test", "--out", "test.safetensors"),
    ("retrieve", "airport near sea", "-k", "5", "--features", "test.safetensors", "--gallery", "found.html"),
)
BARS = {"quickstart": (2.0, 2.5), "index": (1 / 0.7, 2.0), "index-d4": (1 / 0.7, 1 / 0.7), "again": (10.0, 10.0)}
"""By row: how many times as fast as before, on a quiet machine and beside a busy process."""


@dataclass(frozen=True)
class Spent:
    """Seconds of a clock on the wall, and of processors."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Side:
    """One version of the code, its workspace, and the run that it indexes with."""

    root: Path
    workspace: Path
    run: Path | None

    def spent(self, *commands: Sequence[str]) -> Spent:
        """Run commands, one after another."""
        before, started_at = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        for command in commands:
            arguments = [sys.executable, "-m", "cmpagl_cli", "--quiet", "--workspace", str(self.workspace), *command]
            environment = {**os.environ, "PYTHONPATH": str(self.root)}
            subprocess.run(arguments, check=True, capture_output=True, cwd=self.workspace, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Spent(time.perf_counter() - started_at, cpu_s)

    def views(self, tta: str) -> tuple[str, str]:
        """The option of `index`, which was called otherwise until 0.1."""
        text = (self.root / "cmpagl_cli" / "commands" / "index.py").read_text(encoding="utf-8")
        return ("--tta", tta) if '"--tta"' in text else ("--views", {"none": "one", "d4": "dihedral"}[tta])


def in_turns(ours: Callable[[], Spent], before: Callable[[], Spent], repeats: int) -> tuple[Spent, Spent]:
    """Medians of both; the first turn does not count, unless it is the only one."""
    turns = [(before(), ours()) for _ in range(repeats + (repeats > 1))]
    counted = turns[1:] if repeats > 1 else turns
    medians = [
        Spent(statistics.median(one.wall_s for one in side), statistics.median(one.cpu_s for one in side))
        for side in zip(*counted, strict=True)
    ]
    return medians[1], medians[0]


@contextmanager
def busy_process(wanted: bool) -> Iterator[None]:
    """One that never waits, or none."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def draw_jpegs(folder: Path, count: int) -> None:
    """Fields of colour with noise."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        small.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg", quality=90)


def quickstart(side: Side) -> Spent:
    """All of it, from nothing."""
    shutil.rmtree(side.workspace, ignore_errors=True)
    side.workspace.mkdir()
    return side.spent(*QUICKSTART)


def index(side: Side, tta: str) -> Spent:
    """The JPEGs, cold."""
    shutil.rmtree(side.workspace / "indexes", ignore_errors=True)
    return side.spent(("index", str(side.workspace / "images"), *side.views(tta)))


def again(side: Side) -> Spent:
    """`evaluate` and `report` of the quickstart's run, whose split was encoded before."""
    commands = (("evaluate",), ("report", "--out", "report.html"))
    if not (side.workspace / "runs").is_dir():
        side.spent(*QUICKSTART[:2], *commands)
    return side.spent(*commands)


def main() -> int:
    """Print one line for each row that is asked for, and its CPU seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="checkout of the other version")
    parser.add_argument("--run", type=Path, help="folder of a run for the rows of index")
    parser.add_argument("--before-run", type=Path, help="the same for the other version")
    parser.add_argument("--rows", nargs="+", choices=tuple(BARS), default=tuple(BARS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=JPEGS)
    parser.add_argument("--busy", action="store_true")
    asked = parser.parse_args()
    if asked.before is None:
        print("bench_before needs --before DIR, a checkout of the version to compare with", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as scratch, busy_process(asked.busy):
        met = [measured(row, Path(scratch, row), asked) for row in asked.rows]
    return 0 if all(met) else 1


def measured(row: str, scratch: Path, asked: argparse.Namespace) -> bool:
    """Print the lines of a row."""
    ours, before = (
        Side(root, scratch / name, run)
        for name, root, run in (("ours", HERE, asked.run), ("before", asked.before.resolve(), asked.before_run))
    )
    for side in (ours, before):
        prepare(row, side, asked.images)
    here, there = in_turns(lambda: WORK[row](ours), lambda: WORK[row](before), asked.repeats)
    title = TITLES[row].format(images=asked.images) + (" beside a busy process" if asked.busy else "")
    met = report(title, here.wall_s, "s", BARS[row][asked.busy], f"the code {asked.before.name}", there.wall_s)
    compare(f"{title}: CPU time", here.cpu_s, "s", f"the code {asked.before.name}", there.cpu_s)
    return met


TITLES = {
    "quickstart": "the commands of `make quickstart`",
    "index": "index of {images:,} JPEG files of 256 px",
    "index-d4": "index of {images:,} JPEG files of 256 px, d4",
    "again": "evaluate and report of a split that was encoded before",
}


WORK: dict[str, Callable[[Side], Spent]] = {
    "quickstart": quickstart,
    "index": lambda side: index(side, "none"),
    "index-d4": lambda side: index(side, "d4"),
    "again": again,
}


def prepare(row: str, side: Side, images: int) -> None:
    """The images and the run of a row of index; the others make their own."""
    side.workspace.mkdir(parents=True)
    if row in ("index", "index-d4"):
        if side.run is None:
            raise SystemExit("--run and --before-run name the runs that index")
        shutil.copytree(side.run, side.workspace / "runs" / side.run.name)
        draw_jpegs(side.workspace / "images", images)


if __name__ == "__main__":
    sys.exit(main())
