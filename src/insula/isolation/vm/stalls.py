"""Virtual machines that stand still because the host's disk was full.  Async.

QEMU stops a machine whose write finds no space (`werror=enospc`, its default) instead of telling the guest
that its disk is broken: nothing is lost, the workload waits.  Somebody has to let it go on when there is
room.  To be told of the stop would take a monitor connection per machine, so one that has used no CPU time
since the last look is asked.
"""

from __future__ import annotations

import logging
import os

from insula.isolation.vm.vm import Vm
from insula.system import cgroups

log = logging.getLogger(__name__)

_STATUS = "io-error"  # QEMU's RunState
_ROOM_BYTES = 64 << 20  # as is left free elsewhere for the daemon's own records


async def look_after(vm: Vm) -> None:
    """Note that it stands still, and let it go on when there is room.  Raises RuntimeFailed."""
    if vm.ended or vm.paused or vm.record is None or vm.plan.disk is None:
        return
    before, vm.cpu_ticks = vm.cpu_ticks, _cpu_ticks(vm.record.pid)
    if before != vm.cpu_ticks or await vm.monitor.status() != _STATUS:
        vm.stalled = False
        return
    if not vm.stalled:
        log.warning("%s stands still: there is no space left for its disk", vm.plan.id[:12])
        vm.stall()
    if vm.launching:  # who waits for it is told, and may try again
        vm.kill()
        return
    free = os.statvfs(os.path.dirname(vm.plan.disk.upper_disk))
    if free.f_bavail * free.f_frsize > _ROOM_BYTES:
        await vm.go_on()
        log.info("%s goes on: there is space for its disk", vm.plan.id[:12])


def _cpu_ticks(pid: int) -> int:
    """User and system time of a process; -1 of one that is gone."""
    fields = (cgroups.read(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]) if len(fields) > 12 else -1
