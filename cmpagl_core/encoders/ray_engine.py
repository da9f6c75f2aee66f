"""Shards encoded by Ray Data: actors with an encoder each, on this machine or a cluster (extra `ray`).

Ray gives each actor at most two shards, starts a lost one elsewhere with what it had, and holds the actors back while
nobody takes their results. Whoever reaches a Ray cluster may run anything on it: its network must be closed to others,
or it must ask for a token, as one that is started here does.
"""

from __future__ import annotations

import inspect
import logging
import os
import secrets
import socket
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from cmpagl_core.encoders.encoder import Encoder
from cmpagl_core.encoders.spread import ShardResult, ShardWorker, SpreadImages
from cmpagl_core.errors import CmpaglError, UsageError
from cmpagl_core.progress import Progress
from cmpagl_core.session import Session

_SHARDS_AHEAD = 2  # of each actor: the one that it encodes, and the next
_OBJECT_STORE_BYTES = 256 << 20  # of a cluster on this machine: 500 shards of features
_TRIES_AGAIN = 4  # of a shard whose worker died: with its node, most likely, but an image can crash a decoder each time
_ANSWER_S = 10.0
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # tells nobody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what will be the default
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # workers have this process's environment
}


@dataclass(frozen=True)
class RayCluster:
    """Where to encode. address: of a cluster that runs, `auto` for the one of this machine, None to start one here.

    workers: at most so many actors, as many as the cluster has room for if None. cpus: that each takes, and threads
    that it computes with; with GPUs each actor takes one of them too.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int = 1


def images_by_ray(encoder: Encoder, cluster: RayCluster, session: Session) -> SpreadImages:
    """An encoder's images, encoded by a cluster. Raises UsageError where Ray is not installed."""
    device = session.device().type
    return SpreadImages(encoder, RayEngine(cluster, device, session.progress), device)


class RayEngine:
    """An `Engine`. device: the workers' kind, cpu or cuda.

    Raises UsageError where Ray is not installed, CmpaglError for an address where nobody listens.
    """

    def __init__(self, cluster: RayCluster, device: str, progress: Progress) -> None:
        self._cluster, self._device, self._progress = cluster, device, progress
        if cluster.address is not None:
            _check_listening(cluster.address)
        self._ray = _import_ray(own=cluster.address is None)

    def encode(self, order: str, shards: Sequence[str]) -> Generator[ShardResult, None, None]:
        """As in `Engine`."""
        with redirect_stdout(sys.stderr), self._joined(), self._failing():  # Ray prints of lost workers to stdout
            for row in self._dataset(order, shards).iter_rows():
                yield ShardResult(row["about"], row["features"])

    def _dataset(self, order: str, shards: Sequence[str]) -> Any:
        import ray.data

        most = min(self._most_workers(), len(shards))
        self._progress.say(f"encoding {len(shards):,} shards with {most} worker{'s' if most > 1 else ''}")
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        found = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        pool = ray.data.ActorPoolStrategy(
            min_size=1,  # so that what is left of a cluster goes on
            max_size=most,
            initial_size=most,
            max_tasks_in_flight_per_actor=_SHARDS_AHEAD,
        )
        options: dict[str, Any] = {"num_gpus": 1} if self._device == "cuda" else {}
        if _takes_any(found.map_batches):  # Ray 2.64 will not: it tries again without end then
            options |= {"max_restarts": _TRIES_AGAIN, "max_task_retries": _TRIES_AGAIN}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells of 2.64
            return found.map_batches(
                _Actor,
                batch_size=1,
                compute=pool,
                fn_constructor_args=(order,),
                num_cpus=self._cluster.cpus,
                **options,
            )

    def _most_workers(self) -> int:
        """As many as are asked for and fit. Raises UsageError where none does."""
        there = self._ray.cluster_resources()
        fitting = int(there.get("CPU", 0) // self._cluster.cpus)
        if self._device == "cuda":
            fitting = min(fitting, int(there.get("GPU", 0)))
        if fitting < 1:
            wanted = f"{self._cluster.cpus} CPUs" + (" and a GPU" if self._device == "cuda" else "")
            raise UsageError(
                f"the cluster has no room for a worker with {wanted}",
                hint="lower --worker-cpus, or choose another --device",
            )
        return min(fitting, self._cluster.workers or fitting)

    @contextmanager
    def _joined(self) -> Iterator[None]:
        """Connected to the cluster inside the block. Raises CmpaglError where it cannot be reached."""
        address = self._cluster.address
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            options |= {"address": "local", "include_dashboard": False}
            options |= {"num_cpus": _cores(), "object_store_memory": _OBJECT_STORE_BYTES}
        else:
            options["address"] = address
        try:
            self._ray.init(**options)
        except Exception as error:  # of any kind, from sockets to versions
            where = "Ray cannot be started here" if address is None else f"there is no Ray cluster at {address}"
            raise CmpaglError(f"{where} ({_reason(error)})", hint="check `ray status`") from error
        try:
            yield
        finally:
            self._ray.shutdown()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except self._ray.exceptions.ActorDiedError as error:
            raise CmpaglError(
                f"a worker died {_TRIES_AGAIN + 1} times",
                hint="give the workers more memory; if an image crashes them, find it without --engine ray",
            ) from error
        except self._ray.exceptions.RayError as error:
            hint = "run the same command again: what is finished is kept"
            raise CmpaglError(f"Ray could not go on ({_reason(error)})", hint=hint) from error


class _Actor:
    """What Ray Data keeps in each worker."""

    def __init__(self, order: str) -> None:
        self._worker = ShardWorker(order)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        results = [self._worker(str(shard)) for shard in batch["shard"]]
        return {"about": [one.about for one in results], "features": [one.features for one in results]}


def _import_ray(own: bool) -> Any:
    """own: for a cluster of this process, which lets in nobody without the token that only its processes know."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)} if own else {}
    for name, value in {**_SETTINGS, **token}.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ImportError as error:
        raise UsageError("Ray is not installed", hint="pip install 'cmpagl[ray]'") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _check_listening(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise CmpaglError(f"there is no Ray cluster at {address} ({error})", hint="check `ray status` there") from error


def _takes_any(call: Callable[..., Any]) -> bool:
    return any(one.kind is one.VAR_KEYWORD for one in inspect.signature(call).parameters.values())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[-200:]
