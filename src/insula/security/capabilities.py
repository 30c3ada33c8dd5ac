"""Capabilities: the kernel's list, Docker's default, and the arithmetic of --cap-add and --cap-drop.

Pure."""

from __future__ import annotations

from collections.abc import Sequence

from insula.errors import InvalidRequest

# include/uapi/linux/capability.h, in the order of their numbers
ALL: tuple[str, ...] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)

# moby: oci/caps/defaults.go
DEFAULT: frozenset[str] = frozenset(
    {
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    }
)


def normalise(names: Sequence[str], field: str = "CapAdd") -> tuple[str, ...]:
    """`net_admin`, `NET_ADMIN` and `CAP_NET_ADMIN` are the same; `ALL` stays.  Raises InvalidRequest."""
    found = []
    for name in names:
        upper = name.upper()
        full = upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"
        if full != "ALL" and full not in ALL:
            raise InvalidRequest(f'invalid {field}: unknown capability: "{full}"')
        found.append(full)
    return tuple(found)


def finalize_capabilities(
    add: Sequence[str] = (), drop: Sequence[str] = (), *, privileged: bool = False
) -> tuple[str, ...]:
    """What an instance gets, sorted, by moby's rules (oci/caps.TweakCapabilities).

    Privileged: everything.  `--cap-drop ALL`: only what is added.  `--cap-add ALL`: everything but what
    is dropped.  Otherwise the default, less the dropped, plus the added (an added one wins).
    """
    added, dropped = normalise(add), normalise(drop, "CapDrop")
    if privileged:
        return tuple(sorted(ALL))
    if "ALL" in added:
        return (
            tuple(sorted(c for c in ALL if c not in dropped)) if "ALL" not in dropped else tuple(sorted(ALL))
        )
    base = frozenset() if "ALL" in dropped else DEFAULT - set(dropped)
    return tuple(sorted(base | set(added)))


def from_mask(mask: int) -> frozenset[str]:
    """Names in a mask such as CapBnd of /proc/self/status."""
    return frozenset(name for number, name in enumerate(ALL) if mask >> number & 1)
