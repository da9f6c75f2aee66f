"""Run work in forked processes, which share what is imported; used by ranked.py."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


def fork(work: Callable[[], None]) -> int:
    """Start `work` in a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:  # noqa: BLE001 - a child must not go on as its parent
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def in_processes(work: Callable[[int], None], count: int) -> None:
    """Run `work` with each number below `count`, all at once; exits if one fails."""
    children = [fork(lambda rank=rank: work(rank)) for rank in range(count)]  # type: ignore[misc]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        sys.exit(f"the processes ended with {codes}")
