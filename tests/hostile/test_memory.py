"""Large images take little more than themselves, and together no more than was meant, however many threads decode."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmpagl_core.errors import ExitCode
from cmpagl_core.imagery.images import open_image
from cmpagl_core.imagery.room import DecodingRoom

Told = Callable[..., str]

MEASURED = """
import resource, sys
from pathlib import Path
from cmpagl_core.imagery.images import open_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = open_image(Path(sys.argv[1])).size
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (size[0] * size[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="getrusage counts otherwise elsewhere")
@pytest.mark.parametrize("mode", ["I;16", "RGBA", "F"])
def test_a_large_image_takes_few_bytes_a_pixel(mode: str, tmp_path: Path) -> None:
    side = 3_000
    path = tmp_path / ("a.png" if mode.startswith("RGB") else "a.tif")
    Image.new(mode, (side, side)).save(path)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, path], env=environment, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 14  # 16 bits took 27


def test_conversion_in_bands_is_that_of_the_whole(tmp_path: Path) -> None:
    seen = Image.fromarray(np.random.default_rng(1).integers(0, 256, (1_500, 1_100, 4), dtype=np.uint8))
    seen.save(tmp_path / "clear.png")
    black = Image.new("RGBA", seen.size, (0, 0, 0, 255))
    whole = np.asarray(Image.alpha_composite(black, seen).convert("RGB"))
    assert np.array_equal(np.asarray(open_image(tmp_path / "clear.png")), whole)


def test_threads_share_the_room_and_a_giant_is_alone() -> None:
    room, taken, most = DecodingRoom(100), 0, 0
    lock = threading.Lock()

    def decode(size: int) -> None:
        nonlocal taken, most
        with room.held():
            room.take(size)
            with lock:
                taken += min(size, 100)
                most = max(most, taken)
            time.sleep(0.002)
            with lock:
                taken -= min(size, 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [40, 10, 500, 70, 30, 100, 20, 60] * 8))
    assert 0 < most <= 100


def test_a_second_image_in_one_block_takes_the_place_of_the_first() -> None:
    room = DecodingRoom(100)
    with room.held():
        room.take(80)
        with room.held():
            room.take(90)  # would wait for itself
    with room.held():
        room.take(100)


@pytest.mark.parametrize(
    "said", ["std::bad_alloc", "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"]
)
def test_a_model_without_room_is_told_what_to_make_smaller(
    said: str, told: Told, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr("cmpagl_core.training.loop.begin", no_room)
    workspace = ("--workspace", tiny_run.parent.parent)
    answer = told(*workspace, "train", "ucm-cpu", "--data", "tiny", "--name", "x", code=ExitCode.FAILURE)
    assert "out of memory" in answer
    for way_out in ("train.batch_size", "image_encoder", "losses.embed_dim"):
        assert way_out in answer
