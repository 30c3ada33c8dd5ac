"""What a virtual machine cannot honour, with the reason.  Pure, but for looking at what bind sources are."""

from __future__ import annotations

import os
import re
import stat

from insula.errors import Conflict, UnsupportedField
from insula.isolation.plan import LaunchPlan
from insula.isolation.sizing import LEAST_MEMORY_MIB
from insula.isolation.vm.own_devices import check_devices
from insula.isolation.vm.virtiofs import binds
from insula.model.limits import Limits
from insula.system.cgroups import check_shares, version_in_use

_CPUS = re.compile(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*")
_TAG_BYTES = 36  # of a virtiofs device


def _namespaces(plan: LaunchPlan) -> None:
    if plan.host_network:
        raise UnsupportedField(
            "HostConfig.NetworkMode",
            "a virtual machine has a kernel and network stack of its own and cannot use the host's",
            hint="use a bridge network and -p, or --isolation process",
        )
    if plan.joins_network:
        raise UnsupportedField(
            "HostConfig.NetworkMode",
            "a virtual machine has a kernel and network stack of its own and cannot join another instance's",
            hint="put both on one network, where they find each other by name, or use --isolation process",
        )
    modes = (("PidMode", plan.pid_mode), ("IpcMode", plan.ipc_mode), ("UTSMode", plan.uts_mode))
    for field, mode in modes:
        if mode not in ("", "private") and (field, mode) != ("IpcMode", "shareable"):
            if mode != "host" and not mode.startswith("container:"):
                raise UnsupportedField(f"HostConfig.{field}", f"a virtual machine has no such mode: {mode!r}")
            raise UnsupportedField(
                f"HostConfig.{field}",
                f"a virtual machine has a kernel of its own and cannot share namespaces ({mode})",
                hint="use --isolation process",
            )
    if plan.cgroupns_mode == "host":
        raise UnsupportedField(
            "HostConfig.CgroupnsMode",
            "a virtual machine has a kernel of its own and cannot see the host's cgroups",
            hint="use --isolation process",
        )
    if plan.cgroup_parent:
        raise UnsupportedField(
            "HostConfig.CgroupParent", "the cgroup of a virtual machine is chosen by the engine"
        )


def _limits(limits: Limits) -> None:
    if limits.oom_kill_disable:
        raise UnsupportedField(
            "HostConfig.OomKillDisable", "the guest's kernel decides what to do when its memory is used up"
        )
    if limits.cpu_rt_runtime_us or limits.cpu_rt_period_us:
        raise UnsupportedField(
            f"HostConfig.CpuRealtime{'Runtime' if limits.cpu_rt_runtime_us else 'Period'}",
            "the scheduler of a virtual machine's processes is its own kernel's, which sets no real-time CPU "
            "time aside",
            hint="use --cpus or --cpu-shares, or --isolation process",
        )
    if limits.blkio_weight or limits.throttles:
        what = limits.throttles[0].what if limits.throttles else ""
        raise UnsupportedField(
            f"HostConfig.Blkio{'Weight' if what in ('', 'weight') else f'Device{what}'}",
            "the disk of a virtual machine is a file of the host, whose device the guest does not know",
            hint="use --isolation process",
        )
    if limits.cpuset_mems:
        raise UnsupportedField(
            "HostConfig.CpusetMems", "a virtual machine's memory is not bound to memory nodes of the host"
        )
    if limits.cpuset_cpus:
        if not _CPUS.fullmatch(limits.cpuset_cpus):
            raise UnsupportedField(
                "HostConfig.CpusetCpus", f"{limits.cpuset_cpus!r} is not a list such as 0-2,4"
            )
        available = os.sched_getaffinity(0)
        wanted = parse_cpus(limits.cpuset_cpus)
        if not set(wanted) <= available:
            raise UnsupportedField(
                "HostConfig.CpusetCpus",
                f"{limits.cpuset_cpus} asks for CPUs that are not there (available: "
                f"{','.join(map(str, sorted(available)))})",
            )


def _mounts(plan: LaunchPlan) -> None:
    for mount in binds(plan.mounts):
        if mount.propagation not in ("", "private", "rprivate"):
            raise UnsupportedField(
                "HostConfig.Mounts",
                f"{mount.target}: {mount.propagation}: mounts do not propagate between two kernels",
                hint="leave it at rprivate, or use --isolation process",
            )
        if mount.read_only and mount.read_only_above:
            raise UnsupportedField(
                "HostConfig.Mounts.BindOptions.ReadOnlyNonRecursive",
                f"{mount.target}: what is mounted below a read-only bind is read-only in a virtual machine",
                hint="leave it out, or use --isolation process",
            )
        if not mount.tag or len(mount.tag.encode()) > _TAG_BYTES or set(mount.tag) & set("/,\t:"):
            raise UnsupportedField("HostConfig.Mounts", f"{mount.target}: {mount.tag!r} cannot name a device")
        try:
            mode = os.stat(mount.source).st_mode
        except OSError:
            continue  # launch says so, when it is still not there then
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise UnsupportedField(
                "HostConfig.Binds",
                f"{mount.source} is a socket, pipe or device of the host: out of a virtual machine's reach",
                hint="use --isolation process, or publish the service on a port",
            )


def check_plan(plan: LaunchPlan) -> tuple[str, ...]:
    """Warnings.  Raises UnsupportedField for the first thing that cannot be honoured."""
    _namespaces(plan)
    check_devices(plan.security)
    _limits(plan.limits)
    _mounts(plan)
    if plan.machine is not None and plan.machine.memory_mib < LEAST_MEMORY_MIB:
        raise UnsupportedField("HostConfig.Memory", f"a guest kernel needs at least {LEAST_MEMORY_MIB} MiB")
    if version_in_use() == 1:
        check_shares(plan.limits.cpu_shares)
    warnings = []
    if plan.limits.memory_swap_bytes not in (0, plan.limits.memory_bytes):
        warnings.append("MemorySwap has no effect: a virtual machine has its memory and no swap.")
    if plan.limits.memory_swappiness is not None and version_in_use() == 2:
        warnings.append(
            "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. "
            "Memory swappiness discarded."
        )
    return tuple(warnings)


def check_update(old: Limits, new: Limits) -> None:
    """What can change while a VM runs is CPU time, memory and pids.  Raises Conflict for the rest."""
    fixed = (
        ("cpuset mems", old.cpuset_mems, new.cpuset_mems, "a guest's memory is not bound to nodes"),
        ("ulimits", old.ulimits, new.ulimits, "they are set when the workload starts"),
        ("shm size", old.shm_size_bytes, new.shm_size_bytes, "it is set at boot"),
    )
    for name, before, after, why in fixed:
        if before != after:
            raise Conflict(
                f"the {name} of a running virtual machine cannot change: {why}",
                hint="stop it, or create it anew with the new value",
            )
    _limits(new)


def parse_cpus(text: str) -> tuple[int, ...]:
    """`0-2,4` as numbers; "" is no limit.  The text was checked by `check_plan`."""
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(cpus))
