"""Paths of /proc and /sys hidden or read-only in an instance, and the sysctls it may set.  Pure."""

from __future__ import annotations

from collections.abc import Sequence

from insula.errors import InvalidRequest

# moby: oci/defaults.go and daemon/pkg/oci
MASKED_PATHS: tuple[str, ...] = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS: tuple[str, ...] = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)

_IPC_SYSCTLS = frozenset(
    {
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    }
)
_UTS_SYSCTLS = frozenset({"kernel.domainname", "kernel.hostname"})


def finalize_paths(
    security_opt: Sequence[str],
    *,
    privileged: bool,
    masked: tuple[str, ...] | None = None,
    read_only: tuple[str, ...] | None = None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(masked, read-only): those asked for, or Docker's.  None when privileged, or with `--security-opt
    systempaths=unconfined`."""
    if privileged or {"systempaths=unconfined", "systempaths:unconfined"} & set(security_opt):
        return (), ()
    return (
        MASKED_PATHS if masked is None else masked,
        READONLY_PATHS if read_only is None else read_only,
    )


def check_sysctl(name: str, *, own_network: bool, own_ipc: bool, own_uts: bool) -> None:
    """Raises InvalidRequest for a sysctl that is not the instance's own: it would change the host."""
    if name.startswith("net."):
        if not own_network:
            raise InvalidRequest(f"sysctl {name} is not allowed in the host's network namespace")
    elif name in _IPC_SYSCTLS or name.startswith("fs.mqueue."):
        if not own_ipc:
            raise InvalidRequest(f"sysctl {name} is not allowed in the host's ipc namespace")
    elif name in _UTS_SYSCTLS:
        if not own_uts:
            raise InvalidRequest(f"sysctl {name} is not allowed in the host's uts namespace")
    else:
        raise InvalidRequest(f"sysctl {name} is not in a separate kernel namespace")
