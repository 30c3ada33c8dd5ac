"""How large a machine a VM gets.  Pure."""

from __future__ import annotations

import math

from insula.config import Settings
from insula.isolation.plan import GuestMachine
from insula.model.isolation import Isolation
from insula.model.limits import Limits

LEAST_MEMORY_MIB = 64
_MIB = 1024 * 1024


def machine_for(isolation: Isolation, limits: Limits, settings: Settings) -> GuestMachine | None:
    """The guest's machine; None for an isolation that shares the host's kernel.

    A memory limit is the guest's memory, rounded up to MiB and never under 64; a CPU limit is rounded
    up to whole virtual CPUs.  Without limits the settings decide.
    """
    if isolation is not Isolation.VM:
        return None
    memory_mib = math.ceil(limits.memory_bytes / _MIB) if limits.memory_bytes > 0 else settings.vm_memory_mib
    vcpus = math.ceil(limits.cpus()) if limits.cpus() > 0 else settings.vm_vcpus
    return GuestMachine(vcpus=max(1, vcpus), memory_mib=max(LEAST_MEMORY_MIB, memory_mib))
