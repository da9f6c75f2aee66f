"""The processes of one training and how they exchange tensors: torch.distributed, started by torchrun (ours).

Rank 0 alone writes, holds the lock and shows progress. One exchange, in which each process sends rows to every other,
carries all tensors through which gradients flow; its gradient is the same exchange backwards.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from cmpagl_core.errors import UsageError

_TIMEOUT = timedelta(hours=6)  # of a collective: rank 0 may wait for a lock, or match all pairs, while the others wait
_POLL_S = 0.05
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """This process among `count`; a single one has rank 0 and needs no process group."""

    rank: int = 0
    count: int = 1
    device: torch.device = _CPU
    store: Store | None = None

    @property
    def alone(self) -> bool:
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and shows progress."""
        return self.rank == 0

    def sizes(self, total: int) -> tuple[int, ...]:
        """How many of `total` rows each process has: they differ by at most one, the larger come first."""
        return tuple(total // self.count + (rank < total % self.count) for rank in range(self.count))

    def part(self, total: int) -> slice:
        """This process's rows of `total`."""
        sizes = self.sizes(total)
        start = sum(sizes[: self.rank])
        return slice(start, start + sizes[self.rank])

    def gather(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all processes, in the order of ranks, with gradient. rows: [sizes[rank], ...]."""
        if self.alone:
            return rows
        copies = rows.repeat(self.count, *[1] * (rows.dim() - 1))
        return _exchange(copies, [len(rows)] * self.count, list(sizes))

    def route(self, wanted: Tensor, sizes: Sequence[int]) -> Route:
        """How to bring single rows from where they are. wanted: [sizes[rank]] joint row numbers, -1 for none."""
        everyone = self.gather(wanted, sizes).cpu()
        ends = torch.tensor(sizes).cumsum(0)
        first = int(ends[self.rank]) - sizes[self.rank]
        asked = [one[one >= 0] for one in torch.split(everyone, list(sizes))]
        owners = [torch.bucketize(one, ends, right=True) for one in asked]
        sent = [one[owner == self.rank] - first for one, owner in zip(asked, owners, strict=True)]
        own = owners[self.rank]
        return Route(
            rows=torch.cat(sent),
            sent=[len(one) for one in sent],
            received=[int((own == rank).sum()) for rank in range(self.count)],
            order=own.argsort(stable=True).argsort(),
            total=sum(len(one) for one in asked),
        )

    def total(self, values: Tensor) -> Tensor:
        """The elementwise sum over all processes."""
        if not self.alone:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def greatest(self, values: Sequence[float]) -> list[float]:
        """The elementwise maximum over all processes."""
        if self.alone:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return [float(value) for value in found]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process. All wait for each other."""
        return self.greatest([float(flag)]) == [1.0]

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.any(False)

    def from_first(self, values: Sequence[float] | None, count: int) -> list[float]:
        """Rank 0's `count` values; the others give None."""
        if self.alone:
            return list(values or ())
        given = torch.zeros(count, dtype=torch.float64) if values is None else torch.tensor(values, dtype=torch.float64)
        return [float(value) for value in self.total(given.to(self.device))]

    def tell(self, name: str, message: Mapping[str, Any]) -> None:
        """Leave a message for the others."""
        if self.store is not None:
            self.store.set(name, json.dumps(message))

    def hear(self, name: str) -> dict[str, Any]:
        """The message of that name, once it is there; signals are handled while waiting."""
        if self.store is None:
            raise ValueError("a single process has no one to hear")
        while not self.store.check([name]):
            time.sleep(_POLL_S)
        heard: dict[str, Any] = json.loads(self.store.get(name))
        return heard

    def claim(self, name: str) -> bool:
        """Whether this process is the first to claim something, such as to say why a training ends."""
        if self.store is None:
            return True
        try:
            return bool(self.store.add(name, 1) == 1)
        except RuntimeError:  # its host has ended
            return True

    def lost(self, error: RuntimeError) -> bool:
        """Whether an error of a collective says that another process has ended."""
        return not self.alone and (isinstance(error, dist.DistError) or "gloo" in str(error))


@dataclass(frozen=True)
class Route:
    """Which rows go where: `rows` of this process by receiver, and how the received ones are put in order."""

    rows: Tensor
    sent: list[int]
    received: list[int]
    order: Tensor
    total: int  # rows brought, over all processes

    def bring(self, rows: Tensor) -> Tensor:
        """The wanted rows in the order in which they were asked for, with gradient. rows: [b, ...]."""
        brought = _exchange(rows[self.rows.to(rows.device)], self.sent, self.received)
        return brought[self.order.to(rows.device)]


ALONE = Ranks()


def under_torchrun() -> bool:
    """Whether this process is one of several that torchrun (or `--devices`) has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and "MASTER_ADDR" in os.environ


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def join_ranks(device: torch.device) -> Ranks:
    """Join the processes that torchrun has started; a process started otherwise is alone.

    NCCL connects GPUs, gloo everything else. Raises UsageError if the others cannot be reached.
    """
    if not under_torchrun():
        return ALONE
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of depthwise convolutions; no difference
    try:
        store, rank, count = next(rendezvous("env://", timeout=_TIMEOUT))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise UsageError(
            f"the processes of this training cannot reach each other ({said})", hint="see examples/torchrun.md"
        ) from error
    return Ranks(rank, count, device, PrefixStore("cmpagl", store))


def leave_ranks(ranks: Ranks) -> None:
    """Close the connections of `join_ranks`."""
    if not ranks.alone:
        dist.destroy_process_group()


def _exchange(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Rows of each process to each other one; the gradient takes the same way back."""
    from torch.distributed.nn.functional import all_to_all_single

    space = rows.new_empty((sum(received), *rows.shape[1:]))
    brought: Tensor = all_to_all_single(space, rows.contiguous(), received, sent)  # type: ignore[no-untyped-call]
    return brought
