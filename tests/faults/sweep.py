"""Kill every command once at everything that it does to a file, and fill its disk there; used by test_faults.py.

    python sweep.py COUNTER.so OUT.json [--case NAME ...] [--points N] [--random N] [--folder DIR]

must run with COUNTER.so preloaded (`make faults` does). Each case is a command in a small workspace. First it runs
undisturbed, twice: what differs between the two ends are times and the like, and is not compared. Then, for every
event that was counted, a fork of this process runs it in a fresh copy of the workspace and is killed there, or finds
the disk full from there on, or all files gone, to be back afterwards, or its clock a day back from there on; and for
every read, that the file cannot be read from there on (EIO). Then every file must be whole, the same command (or the
one that its sentence names) must finish, the end must be the undisturbed one, and nothing may be left of the dead
process.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

COUNT, KILL, FULL, BAD, GONE, CLOCK = range(6)
_MODES = {"kill": KILL, "full": FULL, "bad": BAD, "gone": GONE, "clock": CLOCK}
Fault = Literal["kill", "full", "random", "bad", "gone", "clock"]

_JUNK = (".partial", ".lock", ".lock.json", ".state")
_TIMES = ("elapsed_s", "seconds_per_epoch")  # which may be alike in two undisturbed runs by chance
_SHORTEST_S, _LONGEST_S = 0.01, 120.0


@dataclass(frozen=True)
class Case:
    """A command to disturb, after others (and `cp` and `rm`) that make its workspace; `then`: tried if it refuses.

    every_step: whether a training saves its state after each step. answers: a command whose output must be the same in
    the end, where a faiss index need not be (rows that are gone may stay in it). is_rounded: features need not be the
    same bits.
    """

    name: str
    command: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    then: tuple[tuple[str, ...], ...] = ()
    every_step: bool = False
    answers: tuple[str, ...] = ()
    is_rounded: bool = False


@dataclass(frozen=True)
class Ended:
    """How a command ended: an exit code, or the negative number of the signal that killed it."""

    code: int
    said: str
    events: tuple[str, ...] = ()
    elapsed_s: float = 0.0


@dataclass
class Swept:
    """What became of a case under one kind of fault. refused: how often it ended with a sentence."""

    case: str
    fault: Fault
    events: int = 0
    points: int = 0
    refused: int = 0
    elapsed_s: float = 0.0
    failures: list[str] = field(default_factory=list)


class Bench:
    """One workspace, restored before every run, always at the same place so that paths in files stay the same."""

    def __init__(self, counter: Path, folder: Path) -> None:
        self._counter = ctypes.CDLL(str(counter))
        self._folder = folder.resolve()
        self.root = self._folder / "workspace"
        self._template = self._folder / "template"
        self._gone = self._folder / "workspace.gone"
        self._gone.mkdir(parents=True, exist_ok=True)

    def build(self, case: Case) -> None:
        """Make the case's workspace. Raises RuntimeError if a command before it fails."""
        from tests.faults.workspace import fill

        for folder in (self.root, self._template):
            shutil.rmtree(folder, ignore_errors=True)
        (self.root / "tmp").mkdir(parents=True)
        fill(self.root)
        for command in case.before:
            if command[0] == "cp":
                shutil.copy(self.root / command[1], self.root / command[2])
                continue
            if command[0] == "rm":
                (self.root / command[1]).unlink()
                continue
            ended = self.run(command)
            if ended.code != 0:
                raise RuntimeError(f"{case.name}: {command} ended with {ended.code}: {ended.said}")
        self.root.rename(self._template)

    def restore(self) -> None:
        """The workspace as it was built."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self._template, self.root, symlinks=True)

    def bring_back(self) -> None:
        """Put what vanished in its place again, over what was made meanwhile."""
        for path in list(self._gone.iterdir()):
            there = self.root / path.name
            if there.is_dir():
                shutil.rmtree(there)
            path.rename(there)

    def run(
        self,
        command: Sequence[str],
        every_step: bool = False,
        mode: int = COUNT,
        number: int = 0,
        killed_after_s: float | None = None,
    ) -> Ended:
        """Run a command line in a fork of this process."""
        said, log = self._folder / "said", self._folder / "events"
        started_at = time.monotonic()
        child = os.fork()
        if child == 0:
            self._work(command, every_step, mode, number, said, log)
        if killed_after_s is not None:
            time.sleep(killed_after_s)
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        events = tuple(log.read_text().splitlines())
        return Ended(code, said.read_text(errors="replace"), events, time.monotonic() - started_at)

    def _work(
        self, command: Sequence[str], every_step: bool, mode: int, number: int, said: Path, log: Path
    ) -> NoReturn:
        signal.alarm(int(_LONGEST_S))
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        logged = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.chdir(self.root)
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.root / "tmp")
        from cmpagl_cli.entry import main
        from tests.faults.workspace import ask_server, index_with_fake

        if every_step:
            from cmpagl_core.training import loop

            loop.STATE_EVERY_S = 0.0
        sys.argv = ["cmpagl", *command]
        self._counter.arm(str(self.root).encode(), mode, ctypes.c_long(number), logged)
        try:
            if command[0] == "index-with-fake":
                index_with_fake(*command[1:])
            if command[0] == "ask-server":
                ask_server(*command[1:])
            main()
        except SystemExit as ended:
            os._exit(ended.code if isinstance(ended.code, int) else 1)
        finally:
            os._exit(70)


def sweep(bench: Bench, case: Case, faults: Sequence[Fault], points: int | None, random_kills: int) -> Iterator[Swept]:
    """Disturb a case in every way. points: evenly spaced ones among all events; None: all."""
    bench.build(case)
    ends = []
    for _ in range(2):
        bench.restore()
        undisturbed = bench.run(case.command, case.every_step)
        if undisturbed.code != 0:
            raise RuntimeError(f"{case.name} ended with {undisturbed.code}: {undisturbed.said}")
        ends.append(End.of(bench, case))
    expected = End(ends[0].state.common(ends[1].state), ends[0].answers)
    for fault in faults:
        started_at = time.monotonic()
        count = len(undisturbed.events)
        if fault == "bad":
            bench.restore()
            count = len(bench.run(case.command, case.every_step, BAD).events)
        done = Swept(case.name, fault, events=count)
        if fault == "random":
            generator = random.Random(case.name)
            moments = [generator.uniform(_SHORTEST_S, undisturbed.elapsed_s) for _ in range(random_kills)]
        else:
            moments = [float(number) for number in _spread(count, points)]
        for moment in moments:
            bench.restore()
            done.points += 1
            if fault == "random":
                ended = bench.run(case.command, case.every_step, killed_after_s=moment)
                where = f"after {moment:.3f} s"
            else:
                ended = bench.run(case.command, case.every_step, _MODES[fault], int(moment))
                where = ended.events[int(moment) - 1] if len(ended.events) >= moment else f"{moment:g} (not reached)"
            done.refused += ended.code > 0
            done.failures += [f"{where}: {why}" for why in _examined(bench, case, fault, ended, expected)]
        done.elapsed_s = round(time.monotonic() - started_at, 1)
        yield done


def _examined(bench: Bench, case: Case, fault: Fault, ended: Ended, expected: End) -> Iterator[str]:
    """What is wrong after a fault, and after the command that comes next."""
    yield from _wrong_ends(fault, ended)
    bench.bring_back()
    if fault == "bad" and case.command[0] == "index":
        # An image that was left out is encoded in another batch later, and its features differ in the last bits.
        case, expected = replace(case, is_rounded=True), expected.rounded()
    yield from (f"{path} is not whole ({why})" for path, why in broken_files(bench.root))
    if fault in ("full", "bad", "clock"):
        yield from (f"{path} is left though it could end" for path in left_overs(bench.root))
    if fault in ("full", "clock") and ended.code == 0:
        yield from End.of(bench, case).differences(expected)
        return
    tried = []
    for command in (case.command, *case.then):
        again = bench.run(command)
        tried.append(f"{' '.join(command)} -> {again.code}: {again.said.strip()[-300:]}")
        if again.code == 0:
            break
        if "unexpected" in again.said or "Traceback" in again.said:
            yield f"what comes next is no sentence: {tried[-1]}"
    else:
        if list(End.of(bench, case).differences(expected)):
            yield f"nothing goes on: {'; '.join(tried)}"
            return
    yield from End.of(bench, case).differences(expected)
    yield from (f"{path} is left of the dead" for path in left_overs(bench.root))


def _wrong_ends(fault: Fault, ended: Ended) -> Iterator[str]:
    if fault == "kill" and ended.code not in (-signal.SIGKILL, 0):
        yield f"ended with {ended.code}: {ended.said[-300:]}"
    if fault == "clock" and ended.code != 0:
        yield f"a clock that goes back ended with {ended.code}: {ended.said[-300:]}"
    is_sentence = "unexpected" not in ended.said and "Traceback" not in ended.said
    if fault in ("bad", "gone") and not (is_sentence and ended.code in (0, 1, 2, 3, 5)):
        yield f"what cannot be read ended with {ended.code}: {ended.said[-300:]}"
    if fault != "full" or ended.code == 0:
        return  # a cache or a figure that could not be written costs nothing
    if ended.code != 1 or not is_sentence:
        yield f"a full disk ended with {ended.code}: {ended.said[-300:]}"
    elif "No space left" not in ended.said:
        yield f"a full disk is not named: {ended.said[-300:]}"


def _spread(count: int, points: int | None) -> list[int]:
    if points is None or points >= count:
        return list(range(1, count + 1))
    return sorted({round(1 + place * (count - 1) / max(1, points - 1)) for place in range(points)})


@dataclass(frozen=True)
class End:
    """How a workspace is in the end, and what it answers where files alone do not decide."""

    state: State
    answers: str

    @classmethod
    def of(cls, bench: Bench, case: Case) -> End:
        end = cls(State.of(bench.root), "")
        if case.is_rounded:
            return end.rounded()
        return cls(end.state.without("faiss"), bench.run(case.answers).said) if case.answers else end

    def rounded(self) -> End:
        """What is left to compare where features are not the same bits: their number, and what was left out."""
        return End(self.state.without("faiss").without("features"), "")

    def differences(self, expected: End) -> Iterator[str]:
        """How this end is not the expected one."""
        yield from self.state.differences(expected.state)
        if self.answers != expected.answers:
            yield f"the answers differ in the end: {self.answers[:200]}"


@dataclass(frozen=True)
class State:
    """The files of a workspace: by path the bytes, or for JSON the leaves."""

    files: dict[str, bytes | dict[str, str]]

    @classmethod
    def of(cls, root: Path) -> State:
        paths = [path for path in root.rglob("*") if path.is_file() and not _is_junk(path)]
        return cls({str(path.relative_to(root)): _content(path) for path in sorted(paths)})

    def without(self, word: str) -> State:
        """The files and leaves that do not have a word in their names."""
        kept = {path: content for path, content in self.files.items() if word not in Path(path).name}
        return State(
            {
                path: {key: value for key, value in content.items() if word not in key}
                if isinstance(content, dict)
                else content
                for path, content in kept.items()
            }
        )

    def common(self, other: State) -> State:
        """What two undisturbed ends agree on; a file that differs is known by its name alone."""
        agreed: dict[str, bytes | dict[str, str]] = {}
        for path, content in self.files.items():
            there = other.files.get(path)
            if isinstance(content, dict) and isinstance(there, dict):
                agreed[path] = {key: value for key, value in content.items() if there.get(key) == value}
            elif content == there:
                agreed[path] = content
            elif there is not None:
                agreed[path] = {}
        return State(agreed)

    def differences(self, expected: State) -> Iterator[str]:
        """How this end is not the expected one."""
        for path, content in expected.files.items():
            if path not in self.files:
                yield f"{path} is missing in the end"
            elif isinstance(content, bytes):
                if self.files[path] != content:
                    yield f"{path} differs in the end"
            else:
                here = self.files[path]
                leaves = here if isinstance(here, dict) else {}
                wrong = [key for key, value in content.items() if leaves.get(key) != value]
                if wrong:
                    yield f"{path} differs in the end at {', '.join(wrong[:5])}"
        for path in self.files.keys() - expected.files.keys():
            yield f"{path} is there in the end"


def _content(path: Path) -> bytes | dict[str, str]:
    content = path.read_bytes()
    return dict(_leaves("", json.loads(content))) if path.suffix == ".json" else content


def _leaves(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, below in value.items():
            if key not in _TIMES:
                yield from _leaves(f"{place}/{key}", below)
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from _leaves(f"{place}/{number}", below)
    else:
        yield place, json.dumps(value)


def broken_files(root: Path) -> Iterator[tuple[str, str]]:
    """Files under their own names that nobody could read."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and not _is_junk(path):
            why = _broken(path)
            if why:
                yield str(path.relative_to(root)), why


def _broken(path: Path) -> str:
    from cmpagl_core.training.journal import read_journal

    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".jsonl":
            list(read_journal(path))
        elif path.suffix in (".csv", ".yaml") and not path.read_bytes().endswith(b"\n"):
            return "it ends within a line"
        elif path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="numpy"):
                pass
        elif path.suffix in (".png", ".jpg"):
            from PIL import Image

            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".npy":
            import numpy as np

            np.load(path, mmap_mode="r")
        elif path.suffix == ".npz":
            import numpy as np

            with np.load(path) as arrays:
                [arrays[name] for name in arrays]
        elif path.suffix == ".faiss":
            import faiss

            faiss.read_index(str(path))
    except Exception as error:  # noqa: BLE001  # whatever a library raises, it cannot be read
        return f"{type(error).__name__}: {error}"
    return ""


def left_overs(root: Path) -> list[str]:
    """Files and folders of a process that is dead, or has said that it cannot go on."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if _is_left(root, path))


def _is_left(root: Path, path: Path) -> bool:
    return _is_junk(path) or path.parent == root / "tmp" or path.name.startswith(".tmp")


def _is_junk(path: Path) -> bool:
    return any(part.endswith(_JUNK) and part.startswith(".") for part in path.parts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("counter", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--case", action="append")
    parser.add_argument("--fault", action="append", choices=get_args(Fault))
    parser.add_argument("--points", type=int)
    parser.add_argument("--random", type=int, default=30)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    from tests.faults.workspace import CASES, SMALL_CASES, warm_up

    every = {**CASES, **SMALL_CASES}
    cases = [every[name] for name in asked.case or every]
    warm_up(whole=not all(case.name in SMALL_CASES for case in cases))
    swept = []
    with tempfile.TemporaryDirectory(prefix="cmpagl-faults-", dir=asked.folder) as folder:
        for case in cases:
            for done in sweep(
                Bench(asked.counter, Path(folder)), case, asked.fault or ("kill", "full"), asked.points, asked.random
            ):
                swept.append(asdict(done))
                print(f"{done.case}, {done.fault}: {done.points} of {done.events} points, {done.elapsed_s:.0f} s, "
                      f"{done.refused} refused, {len(done.failures)} failures", file=sys.stderr)  # fmt: skip
                for failure in done.failures[:10]:
                    print(f"    {failure}", file=sys.stderr, flush=True)
                asked.out.write_text(json.dumps(swept, indent=1))


if __name__ == "__main__":
    main()
