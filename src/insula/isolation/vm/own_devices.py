"""Devices that a guest's kernel has of its own, under the numbers that every Linux has for them.  Pure.

Not for hardware: that is the host kernel's.
"""

from __future__ import annotations

import posixpath

from insula.errors import UnsupportedField
from insula.isolation.plan import Device, Security

# Linux's Documentation/admin-guide/devices.txt; of these a guest has a driver, and anybody may open them
_OWN = {
    "/dev/null": (1, 3),
    "/dev/zero": (1, 5),
    "/dev/full": (1, 7),
    "/dev/random": (1, 8),
    "/dev/urandom": (1, 9),
    "/dev/tty": (5, 0),
    "/dev/fuse": (10, 229),
}
_MOST_RULES = 64  # of the agent: guest/agent/device_rules.h


def check_devices(security: Security) -> None:
    """Raises UnsupportedField for what is not the guest's own."""
    for device in security.devices:
        if posixpath.normpath(device.host_path) not in _OWN:
            raise UnsupportedField(
                "HostConfig.Devices",
                f"{device.host_path} is the host kernel's, not the virtual machine's",
                hint=f"a virtual machine has {', '.join(_OWN)} of its own; or use --isolation process",
            )
        if not posixpath.normpath(device.path).startswith("/dev/"):
            raise UnsupportedField(
                "HostConfig.Devices",
                f"{device.path}: the device nodes of a virtual machine are below /dev",
                hint="give it a path there, or use --isolation process",
            )
    if len(security.devices) + len(security.device_rules) > _MOST_RULES:
        raise UnsupportedField(
            "HostConfig.DeviceCgroupRules",
            f"a virtual machine takes {_MOST_RULES} rules and devices",
            hint="use --privileged, or --isolation process",
        )


def finalize_devices(security: Security) -> list[tuple[str, str]]:
    """`node` and `device` of the agent's CONFIGURE."""
    pairs = []
    for device in security.devices:
        major, minor = _OWN[posixpath.normpath(device.host_path)]
        pairs.append(("node", f"{major}:{minor} {_below_dev(device)}"))
        pairs.append(("device", f"c {major}:{minor} {device.rules or 'rwm'}"))
    return pairs + [("device", rule) for rule in security.device_rules]


def _below_dev(device: Device) -> str:
    return posixpath.normpath(device.path).removeprefix("/dev/")
