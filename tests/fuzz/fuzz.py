"""Fuzz with atheris: python fuzz.py OUT.json [--seconds N] [--target NAME ...]; `make fuzz` does.

Each target runs in a process of its own, which is started again should a library crash it. An error that is none of
errors.py is kept with its input in the folder beside OUT.json, once for each place where it was raised; add what is
found to FOUND in test_fuzz.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

_INPUT_S = 25
_MEMORY_MIB = 3072
_STATISTIC = re.compile(r"^stat::(\w+):\s+(\d+)", re.M)
_WORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_.-]{1,30}")
_MOST_WORDS = 500
_COVERAGE = re.compile(r"cov: (\d+) ft: (\d+)")


def drive(name: str, folder: Path, seconds: int, findings: Path) -> None:
    """Fuzz one target in this process, to the end of it."""
    import atheris

    with atheris.instrument_imports(include=["cmpagl_core"]):
        from tests.fuzz.targets import TARGETS, refuses_in_words

        feed = TARGETS[name].make(folder)
    corpus = folder.parent / "corpus"
    corpus.mkdir(exist_ok=True)
    seeds = TARGETS[name].seeds()
    for number, seed in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    words = sorted({word for seed in seeds for word in _WORD.findall(seed)})[:_MOST_WORDS]
    dictionary = folder.parent / "words"
    dictionary.write_text("".join(f'"{word.decode()}"\n' for word in words))
    seen: set[str] = set()

    def one(content: bytes) -> None:
        try:
            refuses_in_words(feed, content)
        except Exception as error:  # noqa: BLE001  # all that is no sentence is a finding
            frames = traceback.extract_tb(error.__traceback__)
            place = f"{type(error).__name__} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"
            if place not in seen:
                seen.add(place)
                keep(findings, name, place, content, traceback.format_exc())

    options = [
        f"-max_total_time={seconds}", f"-max_len={TARGETS[name].largest}", f"-timeout={_INPUT_S}",
        f"-rss_limit_mb={_MEMORY_MIB}", f"-artifact_prefix={folder.parent}/crash-", "-print_final_stats=1",
        f"-dict={dictionary}",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def keep(findings: Path, name: str, place: str, content: bytes, why: str) -> None:
    """Write a finding down."""
    key = hashlib.sha256(place.encode()).hexdigest()[:12]
    findings.mkdir(parents=True, exist_ok=True)
    (findings / f"{name.replace(' ', '-')}-{key}.input").write_bytes(content)
    (findings / f"{name.replace(' ', '-')}-{key}.txt").write_text(f"{place}\n{why}")
    print(f"{name}: {place}", file=sys.stderr, flush=True)


def fuzz(name: str, seconds: int, findings: Path) -> dict[str, Any]:
    """Fuzz one target in processes of its own. Executions, coverage (instrumented edges) and crashes."""
    executions, crashes, coverage = 0, 0, [(0, 0)]
    until = time.monotonic() + seconds
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="cmpagl-fuzz-") as root:
        while (left := int(until - time.monotonic())) > 0:
            folder = Path(tempfile.mkdtemp(dir=root))
            command = [sys.executable, __file__, "--drive", name, "--seconds", str(left), str(findings), str(folder)]
            done = subprocess.run(
                command, env={**environment, "TMPDIR": root}, capture_output=True, text=True, errors="replace",
                check=False,
            )  # fmt: skip
            said = done.stderr
            coverage += [(int(edges), int(features)) for edges, features in _COVERAGE.findall(said)]
            executions += int(dict(_STATISTIC.findall(said)).get("number_of_executed_units", 0))
            sys.stderr.writelines(line + "\n" for line in said.splitlines() if line.startswith(f"{name}: "))
            if done.returncode == 0:
                break
            crashed = list(Path(root).glob("crash-*"))
            if not crashed:
                raise RuntimeError(f"{name} did not run: {said[-2000:]}")
            for path in crashed:
                crashes += 1
                keep(findings, name, f"crash of the process {crashes}", path.read_bytes(), said[-3000:])
                path.unlink()
    first = next((edges for edges, _ in coverage if edges), 0)
    return {
        "target": name, "seconds": seconds, "executions": executions, "edges_of_seeds": first,
        "edges": max(edges for edges, _ in coverage), "features": max(features for _, features in coverage),
        "crashes": crashes, "findings": len(list(findings.glob(f"{name.replace(' ', '-')}-*.txt"))),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--target", action="append")
    parser.add_argument("--drive")
    asked = parser.parse_args()
    if asked.drive:
        drive(asked.drive, asked.folder, asked.seconds, asked.out)
        return
    from tests.fuzz.targets import TARGETS

    results = []
    for name in asked.target or TARGETS:
        results.append(fuzz(name, asked.seconds, asked.out.parent / "findings"))
        print(json.dumps(results[-1]), flush=True)
        asked.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
