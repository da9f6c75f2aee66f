"""Draws scenes into files, in as many processes as there are cores (ours).

The processes take numbers from one pipe. A scene depends on its number alone, so the files are the same however many
draw, and what a helper leaves undone when it fails is drawn by the process that started it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from cmpagl_core.files import atomic_path, write_json
from cmpagl_core.progress import Advance
from cmpagl_core.synthetic.kinds import scene_file
from cmpagl_core.synthetic.scene import draw_scene
from cmpagl_core.synthetic.truth import truth_as_json

LEAST_PER_PROCESS = 40  # below it, starting a process costs more than it saves

_NUMBER_BYTES = 4
_MOST_IN_PIPE = 8192  # numbers that every system's pipe takes without a reader


def draw_scenes(folder: Path, count: int, seed: int, image_size_px: int, advance: Advance) -> None:
    """Draw scenes 0 to count - 1 into folder/images and folder/truth."""
    step = -(-count // _MOST_IN_PIPE)
    arguments = [str(folder), str(count), str(step), str(seed), str(image_size_px)]
    shown = 0
    with _numbers(range(0, count, step)) as numbers, _helpers(arguments, count, numbers):
        for number in _drawn(folder, count, step, seed, image_size_px, numbers):
            advance(number - shown)
            shown = number
    for number in range(count):
        if not truth_path(folder, number).is_file():
            draw_into(folder, number, seed, image_size_px)
    advance(count - shown)


def draw_into(folder: Path, number: int, seed: int, image_size_px: int) -> None:
    """One scene's files; the truth last."""
    scene = draw_scene(number, seed, image_size_px)
    with atomic_path(folder / "images" / scene.truth.file) as partial:
        scene.image.save(partial, format="PNG", compress_level=1)
    write_json(truth_path(folder, number), truth_as_json(scene.truth))


def truth_path(folder: Path, number: int) -> Path:
    """Where the truth of a scene is."""
    return folder / "truth" / f"{Path(scene_file(number)).stem}.json"


def _drawn(folder: Path, count: int, step: int, seed: int, image_size_px: int, numbers: BinaryIO) -> Iterator[int]:
    """Draw what is left in the pipe; yields each number after its scene."""
    while len(taken := numbers.read(_NUMBER_BYTES)) == _NUMBER_BYTES:
        first = int.from_bytes(taken, "little")
        for number in range(first, min(first + step, count)):
            draw_into(folder, number, seed, image_size_px)
            yield number


@contextmanager
def _numbers(numbers: range) -> Iterator[BinaryIO]:
    """A pipe from which every process takes its next number."""
    end, start = os.pipe()
    with os.fdopen(start, "wb") as stream:
        stream.write(b"".join(number.to_bytes(_NUMBER_BYTES, "little") for number in numbers))
    with closing(os.fdopen(end, "rb", buffering=0)) as stream_of_numbers:
        yield stream_of_numbers


@contextmanager
def _helpers(arguments: list[str], count: int, numbers: BinaryIO) -> Iterator[None]:
    """Processes that draw beside this one until nothing is left; ended at once if this one fails."""
    helpers = min(os.cpu_count() or 1, count // LEAST_PER_PROCESS) - 1
    command = [sys.executable, "-m", __name__, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with ExitStack() as stack:
        started: list[subprocess.Popen[bytes]] = []
        for _ in range(helpers):
            try:
                helper = subprocess.Popen(  # noqa: S603  # this Python, our module
                    command, stdin=numbers, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
                )
            except OSError:
                break  # this process draws alone
            stack.callback(helper.wait)
            stack.callback(helper.kill)
            started.append(helper)
        yield
        for helper in started:
            helper.wait()


def main(arguments: list[str]) -> None:
    """A helper: draw until nothing is left, or until nobody waits for it any more."""
    parent = os.getppid()
    count, step, seed, image_size_px = map(int, arguments[1:])
    with os.fdopen(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as numbers:
        for _ in _drawn(Path(arguments[0]), count, step, seed, image_size_px, numbers):
            if os.getppid() != parent:
                return


if __name__ == "__main__":
    main(sys.argv[1:])
