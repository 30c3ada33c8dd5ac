"""Sizes of machines, and whether the host has room for one more.  Synchronous; reads /proc/meminfo."""

from __future__ import annotations

from dataclasses import dataclass

from insula.isolation.vm.machine import OVERHEAD_MIB

_SPARE = 0.1  # of the host's memory is never taken for what nobody has asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A machine's, as its guest sees it."""

    vcpus: int
    memory_mib: int


def have_memory(memory_mib: int) -> bool:
    """For one more of so much, and a tenth of the host's left."""
    with open("/proc/meminfo", encoding="ascii") as file:
        found = dict(line.split(":", 1) for line in file)
    total, available = (int(found[name].split()[0]) // 1024 for name in ("MemTotal", "MemAvailable"))
    return available - memory_mib - OVERHEAD_MIB > total * _SPARE
