"""How large a machine a VM gets.  Pure."""

from __future__ import annotations

import math

from insula.config import Settings
from insula.isolation.plan import GuestMachine
from insula.model.isolation import Isolation
from insula.model.limits import Limits

LEAST_MEMORY_MIB = 80
"""With 64 Debian's kernel panics before its first process."""
KERNEL_MIB = 64
"""What the guest's kernel, its tables and the agent take before the workload has a page (58 measured)."""
_MIB = 1024 * 1024


def machine_for(isolation: Isolation, limits: Limits, settings: Settings) -> GuestMachine | None:
    """The guest's machine; None for an isolation that shares the host's kernel.

    A memory limit is what the workload may use: the guest's own kernel comes on top of it.  A CPU limit is
    rounded up to whole virtual CPUs.  Without limits the settings decide.
    """
    if isolation is not Isolation.VM:
        return None
    memory_mib = settings.vm_memory_mib
    if limits.memory_bytes > 0:
        memory_mib = math.ceil(limits.memory_bytes / _MIB) + KERNEL_MIB
    vcpus = math.ceil(limits.cpus()) if limits.cpus() > 0 else settings.vm_vcpus
    return GuestMachine(vcpus=max(1, vcpus), memory_mib=max(LEAST_MEMORY_MIB, memory_mib))
