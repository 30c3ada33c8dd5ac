"""The distribution's seccomp profile, with what Docker's takes away.  Pure.

containers-common's is podman's, which lets everybody make user namespaces and mount in them, for containers
in containers; that is much of the host's kernel in reach of whoever gets into one.  Docker's own (moby:
profiles/seccomp/default.json) gives these calls with a capability only.
"""

from __future__ import annotations

import json
from typing import Any

_EPERM, _ENOSYS = 1, 38
# CLONE_NEWTIME is of clone3 and unshare only
_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    1 << 17,
    *(1 << bit for bit in range(25, 31)),
)
_NAMESPACES = (_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET)
# calls, and the capabilities of which any one gives them
_GATED: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        (
            *("fsconfig", "fsmount", "fsopen", "fspick", "mount", "mount_setattr", "move_mount", "open_tree"),
            *("pivot_root", "setns", "umount", "umount2", "unshare"),
        ),
        ("CAP_SYS_ADMIN",),
    ),
    (("syslog",), ("CAP_SYSLOG", "CAP_SYS_ADMIN")),
    (("get_mempolicy", "mbind", "set_mempolicy"), ("CAP_SYS_NICE",)),
    (("pidfd_getfd",), ("CAP_SYS_PTRACE",)),
    (("reboot",), ("CAP_SYS_BOOT",)),
    (("keyctl",), ()),  # keyrings are the host's
)
_CLONES = ("clone", "clone3")


def tighten(profile_json: str) -> str:
    """Raises ValueError, KeyError, TypeError for what is no profile."""
    profile = json.loads(profile_json)
    taken = {*_CLONES, *(name for names, _ in _GATED for name in names)}
    rules = []
    for rule in profile["syscalls"]:
        names = [name for name in rule["names"] if name not in taken]
        if names:
            rules.append({**rule, "names": names})
    for gated, capabilities in _GATED:
        rules += [_allow(gated, include=capability) for capability in capabilities]
        rules.append(_refuse(gated, _EPERM, capabilities))
    return json.dumps({**profile, "syscalls": [*rules, *_clone_rules()]})


def _clone_rules() -> list[dict[str, Any]]:
    """clone3's flags are in memory, where no filter sees them: it is not there, and libc asks clone."""
    unless = ("CAP_SYS_ADMIN",)
    plain = {**_allow(("clone",)), "args": [_flags(sum(_NAMESPACES), 0)], "excludes": {"caps": list(unless)}}
    refused = [{**_refuse(("clone",), _EPERM, unless), "args": [_flags(flag, flag)]} for flag in _NAMESPACES]
    return [_allow(_CLONES, include=unless[0]), plain, *refused, _refuse(("clone3",), _ENOSYS, unless)]


def _flags(mask: int, wanted: int) -> dict[str, Any]:
    return {"index": 0, "value": mask, "valueTwo": wanted, "op": "SCMP_CMP_MASKED_EQ"}


def _allow(names: tuple[str, ...], *, include: str = "") -> dict[str, Any]:
    return {
        "names": list(names),
        "action": "SCMP_ACT_ALLOW",
        "includes": {"caps": [include]} if include else {},
    }


def _refuse(names: tuple[str, ...], errno: int, unless: tuple[str, ...]) -> dict[str, Any]:
    return {
        "names": list(names),
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": errno,
        "excludes": {"caps": list(unless)},
    }
