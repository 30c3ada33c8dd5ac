"""How large a machine a VM gets.  Pure."""

from __future__ import annotations

import math

from insula.config import Settings
from insula.isolation.plan import GuestMachine
from insula.model.isolation import Isolation
from insula.model.limits import Limits

LEAST_MEMORY_MIB = 80
"""With 64 Debian's kernel panics before its first process."""
KERNEL_MIB = 104
"""What the guest's kernel and the agent take before the workload has a page (67 measured with Linux 6.1, 80
with 6.12), and what they go on needing, which the agent keeps from the workload."""
_TABLES = 16
"""One part in so many is the kernel's own: its page tables and hash tables, and bounce buffers from 3 GiB on
(measured: 1/28 of 8 GiB)."""
_HUGE_PAGES_MIB = 96
"""From 512 MiB on the kernel keeps up to this much free, to have huge pages; smaller ones keep less."""
_MIB = 1024 * 1024


def machine_for(isolation: Isolation, limits: Limits, settings: Settings) -> GuestMachine | None:
    """The guest's machine; None for an isolation that shares the host's kernel.

    A memory limit is what the workload may use, and is enforced by the guest's kernel: what that needs for
    itself comes on top.  The host's memory is only taken where the guest touches it.  A CPU limit is rounded
    up to whole virtual CPUs.  Without limits the settings decide.
    """
    if isolation is not Isolation.VM:
        return None
    memory_mib = settings.vm_memory_mib
    if limits.memory_bytes > 0:
        memory_mib = memory_around(math.ceil(limits.memory_bytes / _MIB))
    vcpus = math.ceil(limits.cpus()) if limits.cpus() > 0 else settings.vm_vcpus
    return GuestMachine(vcpus=max(1, vcpus), memory_mib=max(LEAST_MEMORY_MIB, memory_mib))


def memory_around(workload_mib: int) -> int:
    """The memory of a guest in which a workload may use this much."""
    return workload_mib + KERNEL_MIB + workload_mib // _TABLES + min(workload_mib // 8, _HUGE_PAGES_MIB)
