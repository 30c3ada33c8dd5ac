"""What this host's kernel can, for `docker info`.  Synchronous: reads a few files of /proc and /sys."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from insula.errors import Failure
from insula.system.cgroups import Layout, find_layout, version_in_use


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFacts:
    cgroup_version: int
    memory_limit: bool
    swap_limit: bool
    cpu_quota: bool
    cpu_shares: bool
    cpuset: bool
    pids_limit: bool
    oom_kill_disable: bool
    ipv4_forwarding: bool
    bridge_iptables: bool
    bridge_ip6tables: bool
    os_version: str
    file_descriptors: int
    """Of this process."""


def find_kernel_facts() -> KernelFacts:
    """Read from /proc and the cgroup tree."""
    try:
        layout = find_layout()
    except Failure:  # no cgroups: nothing can be limited
        layout = Layout(version_in_use(), {})
    have, first = layout.controllers, layout.version == 1
    memory = layout.path("memory", "") or ""
    return KernelFacts(
        cgroup_version=layout.version,
        memory_limit="memory" in have,
        swap_limit="memory" in have and (not first or os.path.exists(f"{memory}memory.memsw.limit_in_bytes")),
        cpu_quota="cpu" in have and (not first or _have(layout, "cpu", "cpu.cfs_quota_us")),
        cpu_shares="cpu" in have,
        cpuset="cpuset" in have,
        pids_limit="pids" in have,
        oom_kill_disable=first and _have(layout, "memory", "memory.oom_control"),
        ipv4_forwarding=_on("/proc/sys/net/ipv4/ip_forward"),
        bridge_iptables=_on("/proc/sys/net/bridge/bridge-nf-call-iptables"),
        bridge_ip6tables=_on("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
        os_version=_os_version(),
        file_descriptors=len(os.listdir("/proc/self/fd")),
    )


def _have(layout: Layout, controller: str, name: str) -> bool:
    directory = layout.path(controller, "")
    return directory is not None and os.path.exists(f"{directory}{name}")


def _on(path: str) -> bool:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


def _os_version() -> str:
    try:
        return platform.freedesktop_os_release().get("VERSION_ID", "")
    except OSError:
        return ""
