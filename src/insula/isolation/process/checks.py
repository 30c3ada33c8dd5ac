"""What this backend, on this host, cannot honour.  Pure but for reading this process's rlimits."""

from __future__ import annotations

import os
import resource

from insula.errors import InvalidRequest, Unavailable, UnsupportedField
from insula.isolation.plan import LaunchPlan
from insula.isolation.process.mounts import RECURSIVE_READ_ONLY
from insula.isolation.process.resources import find_weight_file
from insula.isolation.process.spec import HostFacts
from insula.model.limits import Limits
from insula.model.mounts import MountKind
from insula.security.paths import check_sysctl
from insula.security.seccomp import resolve
from insula.system.cgroups import Layout

_RLIMITS = {name[7:].lower(): getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
_LEAST_SHARES, _MOST_SHARES = 2, 262_144
_PROPAGATIONS = ("", "private", "rprivate", "shared", "rshared", "slave", "rslave")


def check_plan(plan: LaunchPlan, facts: HostFacts, layout: Layout) -> tuple[str, ...]:
    """Warnings.  Raises UnsupportedField, InvalidRequest or Unavailable."""
    if plan.directory is None:
        raise InvalidRequest("a container needs a directory as its root, not a disk")
    _check_limits(plan, layout)
    _check_security(plan, facts)
    for mount in plan.mounts:
        if mount.propagation not in _PROPAGATIONS:
            raise UnsupportedField("BindOptions.Propagation", f"{mount.propagation!r} is not a propagation")
        if mount.kind is MountKind.VOLUME:
            raise InvalidRequest(f"the volume at {mount.target} has not become a directory")
        if mount.read_only_below and facts.kernel < RECURSIVE_READ_ONLY:
            raise UnsupportedField(
                "HostConfig.Mounts.BindOptions.ReadOnlyForceRecursive",
                f"{mount.target}: this host's kernel, older than 5.12, makes only the mount itself read-only",
            )
    if plan.init and not facts.init_path:
        raise Unavailable("HostConfig.Init: no static init program is installed", hint="apt-get install tini")
    if plan.cgroupns_mode == "private" and plan.security.privileged and layout.version == 1:
        raise InvalidRequest(  # moby's
            "privileged mode is incompatible with private cgroup namespaces.  You must run the container in "
            "the host cgroup namespace when running privileged mode"
        )
    return (*weight_warnings(plan.limits, layout), *swappiness_warning(plan.limits, layout))


def _check_limits(plan: LaunchPlan, layout: Layout) -> None:
    limits = plan.limits
    for wanted, controller, field in (
        (limits.memory_bytes, "memory", "HostConfig.Memory"),
        (limits.memory_reservation_bytes, "memory", "HostConfig.MemoryReservation"),
        (limits.nano_cpus or limits.cpu_quota_us > 0, "cpu", "HostConfig.NanoCpus"),
        (limits.cpu_shares, "cpu", "HostConfig.CpuShares"),
        (limits.cpuset_cpus or limits.cpuset_mems, "cpuset", "HostConfig.CpusetCpus"),
        (limits.pids > 0, "pids", "HostConfig.PidsLimit"),
        (
            any(t.what != "weight" for t in limits.throttles),
            "io" if layout.version == 2 else "blkio",
            "HostConfig.BlkioDevice",
        ),
    ):
        if wanted and controller not in layout.controllers:
            raise UnsupportedField(field, f"this host has no {controller} cgroup controller")
    if layout.version == 1:
        _check_shares(limits.cpu_shares)
    if (limits.cpu_rt_runtime_us or limits.cpu_rt_period_us) and not _have_real_time(layout):
        raise UnsupportedField(
            f"HostConfig.CpuRealtime{'Runtime' if limits.cpu_rt_runtime_us else 'Period'}",
            "Your kernel does not support CPU real-time scheduler",  # moby's words
            hint="it needs CONFIG_RT_GROUP_SCHED and cgroup version 1; use --cpu-shares or --cpus",
        )
    if limits.oom_kill_disable and layout.version == 2:
        raise UnsupportedField("HostConfig.OomKillDisable", "cgroup version 2 has no such switch")
    for ulimit in limits.ulimits:
        if ulimit.name not in _RLIMITS:
            raise InvalidRequest(f"invalid ulimit type: {ulimit.name}")
        _check_ulimit(ulimit.name, ulimit.hard)


def _check_shares(shares: int) -> None:
    """The kernel makes do with the nearest that it has; runc refuses, in these words."""
    if shares < 0:
        raise InvalidRequest(f"{shares} is no number of cpu shares: invalid argument")
    if shares and shares < _LEAST_SHARES:
        raise InvalidRequest(f"the minimum allowed cpu-shares is {_LEAST_SHARES}")
    if shares > _MOST_SHARES:
        raise InvalidRequest(f"the maximum allowed cpu-shares is {_MOST_SHARES}")


def _have_real_time(layout: Layout) -> bool:
    group = layout.path("cpu", "") if layout.version == 1 else None
    return group is not None and os.path.exists(f"{group}/cpu.rt_runtime_us")


def weight_warnings(limits: Limits, layout: Layout) -> tuple[str, ...]:
    """Few kernels weigh block I/O (those with the bfq scheduler loaded), and Docker goes on without, too."""
    of_devices = any(throttle.what == "weight" for throttle in limits.throttles)
    if not (limits.blkio_weight or of_devices) or _have_block_weights(layout):
        return ()
    lacking = "Your kernel does not support Block I/O {} or the cgroup is not mounted. {} discarded."
    return (
        *((lacking.format("weight", "Weight"),) if limits.blkio_weight else ()),
        *((lacking.format("weight_device", "Weight-device"),) if of_devices else ()),
    )


def swappiness_warning(limits: Limits, layout: Layout) -> tuple[str, ...]:
    """Version 2 has no such setting, and Docker goes on without, too; in its words."""
    if limits.memory_swappiness is None or layout.version == 1:
        return ()
    return (
        "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. "
        "Memory swappiness discarded.",
    )


def _have_block_weights(layout: Layout) -> bool:
    """The file is in every group but the root."""
    base = layout.path("blkio", "")
    if base is None:
        return False
    with os.scandir(base) as entries:
        groups = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return any(find_weight_file(layout, group) for group in groups)


def _check_ulimit(name: str, hard: int) -> None:
    """Raising a hard limit needs CAP_SYS_RESOURCE, which a daemon inside a container often lacks."""
    ours = resource.getrlimit(_RLIMITS[name])[1]
    if ours == resource.RLIM_INFINITY or (0 <= hard <= ours) or _may_raise():
        return
    raise UnsupportedField(
        f"HostConfig.Ulimits.{name}",
        f"the hard limit {'unlimited' if hard < 0 else hard} is above the daemon's own {ours}, which it may "
        "not raise (no CAP_SYS_RESOURCE)",
        hint=f"use at most {ours}",
    )


def _may_raise() -> bool:
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> 24 & 1)
    return False


def _check_security(plan: LaunchPlan, facts: HostFacts) -> None:
    security = plan.security
    missing = set(security.capabilities) - facts.capabilities
    if missing and not (security.privileged or security.all_capabilities):
        raise UnsupportedField(
            "HostConfig.CapAdd", f"the daemon itself lacks {', '.join(sorted(missing))} and cannot give it"
        )
    for name, _ in security.sysctls:
        check_sysctl(
            name,
            own_network=not plan.host_network,
            own_ipc=plan.ipc_mode != "host" and not plan.ipc_mode.startswith("container:"),
            own_uts=plan.uts_mode != "host",
        )
    if security.seccomp:
        resolve(security.seccomp, security.capabilities, facts.kernel, facts.arch)
