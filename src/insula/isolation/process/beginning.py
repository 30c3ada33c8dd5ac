"""When a container has begun: its program has come to rest for the first time, or has ended.  Async.

Whoever starts an instance and looks into it at once (`exec`, `logs`, `kill -s HUP`) expects to see what its
first command did.  dockerd takes so long over a start that this has always been so; the runtime alone takes
10 ms, and the container's init has not even executed its program then.  A program that goes on computing is
waited for until it has had `_COMPUTED_TICKS`: CPU time, as a busy host may give it none for a while.
"""

from __future__ import annotations

import asyncio
import os
import time

from insula.isolation.plan import LaunchPlan
from insula.isolation.process.spec import cgroup_name
from insula.system import cgroups
from insula.system.cgroups import Layout

_COMPUTED_TICKS = os.sysconf("SC_CLK_TCK") // 10  # 0.1 s
_LIMIT_S = 2.0
_STEP_S = 0.001
_BUSY = frozenset("RD")  # of proc(5): running, or waiting for a disk


class Beginning:
    """Made before the container's init is let go: what it executes then is the runtime."""

    def __init__(self, layout: Layout, plan: LaunchPlan, init_pid: int) -> None:
        self._layout = layout
        self._group = cgroup_name(plan)
        self._init_pid = init_pid
        self._runtime = _program(init_pid)

    async def wait(self) -> None:
        limit = time.monotonic() + _LIMIT_S
        while self._is_busy() and time.monotonic() < limit:  # noqa: ASYNC110  (the kernel tells nobody)
            await asyncio.sleep(_STEP_S)

    def _is_busy(self) -> bool:
        program = _program(self._init_pid)
        if not program:
            return False  # it has ended
        if program == self._runtime:
            return True
        looks = [_look(pid) for pid in cgroups.processes(self._layout, self._group)]
        computed = sum(ticks for _, ticks in looks)
        return computed < _COMPUTED_TICKS and any(state in _BUSY for state, _ in looks)


def _program(pid: int) -> str:
    """What it executes; "" when it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def _look(pid: int) -> tuple[str, int]:
    """State of its first thread and CPU time of all (ticks), by proc(5); ("", 0) when it has ended."""
    fields = (cgroups.read(f"/proc/{pid}/stat") or "").rpartition(") ")[2].split()
    return (fields[0], int(fields[11]) + int(fields[12])) if len(fields) > 12 else ("", 0)
