"""The mounts of a container: Docker's defaults, the engine's /etc files, the user's wishes.

Pure, but for one question: whether what is bound is a file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from insula.isolation.plan import LaunchPlan
from insula.model.mounts import Mount, MountKind

RECURSIVE_READ_ONLY = (5, 12)
"""The kernel that brought mount_setattr(2)."""

_OPPOSITES = {"noexec": "exec", "nosuid": "suid", "nodev": "dev"}


def make_mounts(
    plan: LaunchPlan, kernel: tuple[int, int], init_path: str, init_target: str
) -> list[dict[str, Any]]:
    """In the order to mount them: parents first; a user's mount replaces a default one at the same place."""
    taken = {m.target.rstrip("/") for m in plan.mounts}
    mounts = [m for m in _defaults(plan) if m["destination"] not in taken]
    access = "ro" if plan.security.read_only_root else "rw"
    own = [_user_mount(m, kernel) for m in plan.mounts]
    own += [
        _bind(file.host_path, file.target, ["rbind", "rprivate", access])
        for file in plan.etc_files
        if file.target not in taken
    ]
    mounts += sorted(own, key=lambda m: m["destination"].rstrip("/").count("/"))
    if init_path:
        mounts.append(_bind(init_path, init_target, ["bind", "ro"]))
    return mounts


def shares_shm(plan: LaunchPlan) -> bool:
    """Whether another container's shared memory is to be at its /dev/shm, once it is made."""
    own = {m.target.rstrip("/") for m in plan.mounts}
    return plan.ipc_mode.startswith("container:") and "/dev/shm" not in own


def tmpfs_options(options: Sequence[str]) -> list[str]:
    """Docker's defaults for a tmpfs, less what the user's options say otherwise."""
    given = [o for option in options for o in option.split(",") if o]
    kept = [word for word, opposite in _OPPOSITES.items() if opposite not in given and word not in given]
    return [*kept, *given]


def _defaults(plan: LaunchPlan) -> list[dict[str, Any]]:
    privileged = plan.security.privileged
    access = "rw" if privileged else "ro"
    shm = f"size={plan.limits.shm_size_bytes}"
    mounts = [
        _mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts", "devpts", "devpts",
            "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5",
        ),
        _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", access),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", access, "nosuid", "noexec", "nodev"),
    ]  # fmt: skip
    # in the host's ipc namespace a new mqueue mount shows the host's queues
    mounts.append(_mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"))
    if plan.ipc_mode == "host":
        mounts.append(_bind("/dev/shm", "/dev/shm", ["rbind", "rprivate", "rw"]))
    elif plan.ipc_mode != "none":
        mounts.append(_mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", shm))
    return mounts


def _user_mount(mount: Mount, kernel: tuple[int, int]) -> dict[str, Any]:
    if mount.kind is MountKind.TMPFS:
        options = tmpfs_options(mount.options)
        if mount.read_only and "ro" not in options:
            options.append("ro")
        return _mount(mount.target, "tmpfs", "tmpfs", *options)
    # crun (1.8) opens what is read-only all the way down as a directory; below a file there is nothing
    is_file = os.path.exists(mount.source) and not os.path.isdir(mount.source)
    below = kernel >= RECURSIVE_READ_ONLY and not mount.read_only_above and not is_file
    access = ("rro" if below else "ro") if mount.read_only else "rw"
    how, propagation = "rbind", mount.propagation or "rprivate"
    if not mount.recursive:
        # of one mount alone they mean the same, and crun (1.8) takes the r for the bind's
        how, propagation = "bind", propagation.removeprefix("r")
        access = access.removeprefix("r") if access == "rro" else access
    return _bind(mount.source, mount.target, [how, access, propagation, *mount.options])


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _bind(source: str, destination: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": options}
