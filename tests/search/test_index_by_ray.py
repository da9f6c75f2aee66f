"""`--engine ray` gives the bytes of one process: on this machine, and on two nodes of which one is killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmpagl_core.encoders import ray_engine
from cmpagl_core.encoders.ray_engine import RayCluster, RayEngine
from cmpagl_core.errors import CmpaglError, UsageError
from cmpagl_core.progress import Silent
from tests.conftest import REPOSITORY, Cmpagl

IMAGES = 3_000
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_health_check_failure_threshold": "2"}


def environment() -> dict[str, str]:
    path = os.pathsep.join((str(REPOSITORY), os.environ["PYTHONPATH"]))
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}


@contextmanager
def node(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start --block`, as the leader of a group of processes, which is killed at the end of the block."""
    options = ("--num-cpus=1", "--object-store-memory=100000000", "--block")
    call = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, *options]
    started = subprocess.Popen(
        call, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield started
    finally:
        kill(started)


def kill(leader: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(what: object, condition: object, limit_s: float = 120) -> None:
    ends_at = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < ends_at, f"{what} took longer than {limit_s:g} s"
        time.sleep(0.05)


def nodes_of(address: str) -> int:
    """How many nodes a cluster has; 0 while it is not there."""
    asked = f"import ray; ray.init(address={address!r}, log_to_driver=False); print(len(ray.nodes()))"
    done = subprocess.run([sys.executable, "-c", asked], env=environment(), capture_output=True, text=True, check=False)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else 0


def files_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.glob("*.safetensors")}


@pytest.mark.slow
def test_a_killed_node_loses_no_image(cmpagl: Cmpagl, tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny")
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = random.integers(0, 255, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number:05d}.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    assert cmpagl("index", "images", "--run", "tiny", "--name", "alone").exit_code == 0
    address = f"127.0.0.1:{free_port()}"
    asked = ("index", "images", "--run", "tiny", "--name", "spread", "--engine", "ray", "--address", address)
    with ExitStack() as ending:
        ending.enter_context(node("--head", f"--port={address.split(':')[1]}", "--include-dashboard=false"))
        wait_for("the head", lambda: nodes_of(address) == 1)
        second = ending.enter_context(node(f"--address={address}"))
        wait_for("the second node", lambda: nodes_of(address) == 2)
        call = [sys.executable, "-m", "cmpagl_cli", *asked, "--format", "json"]
        indexing = subprocess.Popen(
            call, cwd=tmp_path, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        parts = tmp_path / "indexes" / "spread" / "parts"
        wait_for("a part", lambda: any(parts.glob("*.safetensors")) or indexing.poll() is not None)
        assert indexing.poll() is None, indexing.communicate()
        kill(second)
        out, told = indexing.communicate(timeout=300)
    assert indexing.returncode == 0, told
    made = json.loads(out)[0]
    assert (made["images"], made["encoded"], made["left_out"]) == (IMAGES, IMAGES, 1)
    assert re.search(r"encoding 12 shards with 2 workers", told)
    assert "broken.png" in told
    assert files_of(tmp_path / "indexes" / "spread") == files_of(tmp_path / "indexes" / "alone")


@pytest.mark.slow
def test_a_cluster_of_its_own_exports_the_same_bytes(cmpagl: Cmpagl, tiny_run: Path, tmp_path: Path) -> None:
    asked = [
        "export",
        "--run",
        str(tiny_run),
        "--data",
        str(tiny_run.parent.parent / "data" / "tiny"),
        "--split",
        "all",
    ]
    assert cmpagl(*asked, "--out", "alone.safetensors").exit_code == 0
    other = {key: value for key, value in environment().items() if key not in ENVIRONMENT}
    call = [sys.executable, "-m", "cmpagl_cli", "--workspace", "other", *asked, "--out", "spread.safetensors"]
    done = subprocess.run(
        [*call, "--engine", "ray", "--workers", "1", "--format", "json"],
        cwd=tmp_path, env=other, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["images"] == 12
    assert (tmp_path / "spread.safetensors").read_bytes() == (tmp_path / "alone.safetensors").read_bytes()


class Crashing:
    """A worker that every shard kills, as a broken decoder would."""

    def __init__(self, order: str) -> None: ...

    def __call__(self, batch: object) -> object:
        os._exit(1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # its own, of its own settings
def test_a_shard_that_kills_every_worker_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "_Actor", Crashing)
    with pytest.raises(CmpaglError, match=r"a worker died 5 times; give the workers more memory"):
        list(RayEngine(RayCluster(workers=1), "cpu", Silent()).encode("an order", ["a shard", "another"]))


def test_without_ray_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))  # where Ray's settings are left
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"Ray is not installed; pip install 'cmpagl\[ray\]'"):
        RayEngine(RayCluster(), "cpu", Silent())


def test_an_address_where_nobody_listens_is_said_at_once(this_machine: None) -> None:
    with pytest.raises(CmpaglError, match=r"there is no Ray cluster at 127\.0\.0\.1:\d+ \(.*refused\)"):
        RayEngine(RayCluster(f"127.0.0.1:{free_port()}"), "cpu", Silent())


def test_options_of_ray_are_refused_without_it(cmpagl: Cmpagl) -> None:
    told = cmpagl("index", "images", "--address", "auto")
    assert (told.exit_code, "are Ray's; add --engine ray" in told.stderr) == (2, True)
    told = cmpagl("export", "--engine", "ray", "--scores")
    assert (told.exit_code, "leave out --onnx and --scores" in told.stderr) == (2, True)
