"""Starts a training's processes on this machine with torch's own launcher, as torchrun does (ours)."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cmpagl_core.errors import CmpaglError, ExitCode

_MONITOR_S = 0.1


def launch(count: int, arguments: Sequence[str]) -> ExitCode:
    """Run `cmpagl ARGUMENTS` in `count` processes that torch.distributed connects; returns how they ended.

    Without OMP_NUM_THREADS they share the cores. Raises CmpaglError if one was killed and none could say so.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    logging.disable(logging.CRITICAL)  # the launcher's: the processes say themselves what went wrong
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        run_id="cmpagl",
        max_restarts=0,
        monitor_interval=_MONITOR_S,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "cmpagl_cli", *arguments)
    except ChildFailedError as error:
        return _ended([failure.exitcode for failure in error.failures.values()])
    except (SignalException, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    return ExitCode.DONE


def _ended(codes: Sequence[int]) -> ExitCode:
    """The exit code of processes that have failed; one that was killed has a negative one."""
    said = [code for code in codes if code > 0]
    if not said:
        raise CmpaglError(
            f"all processes of this training were killed (signal {-codes[0]}); its last state is kept",
            hint="resume it with `cmpagl train --resume`",
        )
    known = [code for code in said if code in set(map(int, ExitCode))]
    return ExitCode(max(known, default=ExitCode.FAILURE))
