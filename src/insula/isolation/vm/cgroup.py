"""The cgroup of one VM's host processes: made, limited, removed.  Synchronous; cgroup v1 and v2.

Named `insula/<instance id>`.  It limits the hypervisor and its helpers, whatever the guest does inside.
Not for containers: the OCI runtime makes theirs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from insula.errors import Unavailable
from insula.model.limits import Limits
from insula.system import cgroups
from insula.system.cgroups import Layout

PARENT = "insula"
_V1 = ("memory", "cpu", "cpuacct", "pids")
_V2 = ("memory", "cpu", "pids", "io")
_PERIOD_US = 100_000


def group_name(instance_id: str) -> str:
    return f"{PARENT}/{instance_id}"


def shares_to_weight(shares: int) -> int:
    """cpu.shares (2–262144) as cpu.weight (1–10000), by the formula of the OCI runtimes; 0 stays 0."""
    return 1 + ((shares - 2) * 9999) // 262142 if shares else 0


def memory_settings(most_bytes: int, reservation_bytes: int, version: int) -> dict[str, str]:
    """Control files to values."""
    if version == 2:
        low = {"memory.low": str(reservation_bytes)} if reservation_bytes else {}
        return {"memory.max": str(most_bytes)} | low
    soft = {"memory.soft_limit_in_bytes": str(reservation_bytes)} if reservation_bytes else {}
    return {"memory.limit_in_bytes": str(most_bytes)} | soft


def reservation_settings(reservation_bytes: int, version: int) -> dict[str, str]:
    """None is written as such, so that an update can lift one."""
    if version == 2:
        return {"memory.low": str(reservation_bytes)}
    return {"memory.soft_limit_in_bytes": str(reservation_bytes or -1)}


def cpu_settings(limits: Limits, version: int) -> dict[str, str]:
    """Quota and shares; no quota is written as such, so that an update can lift one."""
    period = limits.cpu_period_us or _PERIOD_US
    quota = int(limits.cpus() * period) if limits.cpus() > 0 else 0
    if version == 2:
        return {
            "cpu.max": f"{quota or 'max'} {period}",
            "cpu.weight": str(shares_to_weight(limits.cpu_shares) or 100),
        }
    return {
        "cpu.cfs_period_us": str(period),
        "cpu.cfs_quota_us": str(quota or -1),
        "cpu.shares": str(limits.cpu_shares or 1024),
    }


class Cgroup:
    def __init__(self, layout: Layout, instance_id: str) -> None:
        self.layout = layout
        self.group = group_name(instance_id)

    def directory(self, controller: str) -> str | None:
        return self.layout.path(controller, self.group)

    def make(self, memory_bytes: int, limits: Limits) -> tuple[str, ...]:
        """Made, and limited in memory; returns the `cgroup.procs` files to join.  `limit_cpu` does the rest.

        Raises Unavailable when the host's cgroups cannot be written to.
        """
        try:
            if self.layout.version == 2:
                base = self.layout.hierarchies[""]
                os.makedirs(f"{base}/{self.group}", exist_ok=True)
                for directory in (base, f"{base}/{PARENT}"):
                    have = set((cgroups.read(f"{directory}/cgroup.controllers") or "").split())
                    for controller in sorted(have.intersection(_V2)):
                        cgroups.write(f"{directory}/cgroup.subtree_control", f"+{controller}")
                directories = [f"{base}/{self.group}"]
            else:
                found = (self.directory(controller) for controller in _V1)
                directories = list(dict.fromkeys(path for path in found if path))
                for directory in directories:
                    os.makedirs(directory, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"cannot make the cgroup {self.group}: {error}") from error
        version = self.layout.version
        self._write("memory", memory_settings(memory_bytes, limits.memory_reservation_bytes, version))
        if limits.memory_swappiness is not None:  # of the host's pages that the machine is made of
            self._write("memory", {"memory.swappiness": str(limits.memory_swappiness)})
        return tuple(f"{directory}/cgroup.procs" for directory in directories)

    def limit_cpu(self, limits: Limits) -> None:
        self._write("cpu", cpu_settings(limits, self.layout.version))

    def reserve_memory(self, limits: Limits) -> None:
        version = self.layout.version
        self._write("memory", reservation_settings(limits.memory_reservation_bytes, version))

    def _write(self, controller: str, settings: Mapping[str, str]) -> None:
        """Does nothing on a host without the controller, as Docker does (it warns in `info`)."""
        directory = self.directory(controller)
        for name, value in settings.items():
            if directory and os.path.exists(f"{directory}/{name}"):
                cgroups.write(f"{directory}/{name}", value)

    def pids(self) -> list[int]:
        return cgroups.processes(self.layout, self.group)

    def remove(self) -> bool:
        """False while a process is still in it."""
        return cgroups.remove(self.layout, self.group)
