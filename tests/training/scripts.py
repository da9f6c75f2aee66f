"""Run a script in a process of its own that does not import torch and the models: that takes longer than most tests.

Each worker of the suite has one server, started by the first script, that imports them once and forks for each.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["cmpagl_core.ablation.study", "cmpagl_core.training.start", "cmpagl_core.datasets.building"]
)


def _run(script: Path, arguments: list[str], said: Path, complaints: Path) -> None:
    for path, stream in ((said, 1), (complaints, 2)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), stream)
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


def run_script(script: Path, folder: Path, *arguments: str | Path) -> str:
    """What it prints, which goes through files in that new folder; fails with its errors. It may take 15 minutes."""
    folder.mkdir()
    said, complaints = folder / "stdout", folder / "stderr"
    process = _CONTEXT.Process(target=_run, args=(script, [str(one) for one in arguments], said, complaints))
    process.start()
    process.join(timeout=900)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0, complaints.read_text()
    return said.read_text()
