"""The one field that insula adds: what separates an instance from its neighbours.  Pure."""

from __future__ import annotations

import enum

from insula.errors import InvalidRequest
from insula.model.network import LinkKind
from insula.model.root import RootKind


class Isolation(enum.StrEnum):
    PROCESS = "process"
    VM = "vm"


def parse_isolation(text: str | None, default: Isolation) -> Isolation:
    """Read `HostConfig.Isolation`; empty and `default` mean the daemon's default.

    `hyperv` is what Docker on Windows calls a VM of its own.  Raises InvalidRequest with moby's
    wording for anything else.
    """
    word = (text or "").lower()
    if word in ("", "default"):
        return default
    if word == "hyperv":
        return Isolation.VM
    try:
        return Isolation(word)
    except ValueError:
        raise InvalidRequest(
            f"Invalid isolation: {text!r}", hint="use process, vm, hyperv (the same as vm) or default"
        ) from None


def link_kind(isolation: Isolation) -> LinkKind:
    """What the network has to make for an instance to be plugged in."""
    return LinkKind.TAP if isolation is Isolation.VM else LinkKind.VETH


def default_cgroup_namespace(isolation: Isolation, cgroup_version: int) -> str:
    """What an instance has that did not ask: moby's rule, and a VM has all cgroups to itself."""
    return "host" if isolation is Isolation.PROCESS and cgroup_version == 1 else "private"


def root_kind(isolation: Isolation) -> RootKind:
    """In which form an instance takes its image."""
    return RootKind.DISK if isolation is Isolation.VM else RootKind.DIRECTORY


def output_delay_s(isolation: Isolation) -> float:
    """How long after a start the first output may be on its way: a machine's goes through its own kernel."""
    return 2.0 if isolation is Isolation.VM else 0.0


def reaches_sockets(isolation: Isolation) -> bool:
    """Whether a socket of the host's that is mounted inside can be connected to: a guest sees its name."""
    return isolation is not Isolation.VM
