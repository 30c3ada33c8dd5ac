"""Mounts as asked for: are the words right, is the host's side there.  Pure but for `prepare_bind`."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable

from insula.errors import InvalidRequest, UnsupportedField
from insula.model.mounts import MountKind, MountSpec
from insula.model.paths import clean_path
from insula.system.files import disk_errors
from insula.volumes.driver import check_driver, check_options
from insula.volumes.volumes import check_volume_name

# Flags as util-linux knows them, with their opposites; moby: pkg/mount.MergeTmpfsOptions
_FLAG_WORDS = """
async atime defaults dev diratime dirsync exec iversion loud mand noatime nodev nodiratime noexec
noiversion nomand norelatime nostrictatime nosuid relatime remount ro rw silent strictatime suid
sync
"""
_TMPFS_FLAGS = frozenset(_FLAG_WORDS.split())
_TMPFS_VALUES = frozenset({"gid", "mode", "mpol", "nr_blocks", "nr_inodes", "size", "uid"})
# runc refuses all else below /proc, which says what the workload may see (checkProcMount in rootfs_linux.go)
_PROC_FILES = frozenset(
    f"/proc/{name}"
    for name in (
        *("cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo"),
        *("net/dev", "sys/kernel/ns_last_pid", "sys/crypto/fips_enabled"),
    )
)
_PROPAGATION = frozenset({"", "private", "rprivate", "shared", "rshared", "slave", "rslave"})


def check_mounts(mounts: Iterable[MountSpec]) -> None:
    """Raises InvalidRequest in moby's words."""
    seen: set[str] = set()
    for mount in mounts:
        target = clean_target(mount.target)
        if target in seen:
            raise InvalidRequest(f"Duplicate mount point: {target}")
        seen.add(target)
        check_not_proc(mount.kind, target, mount.source)
        if mount.propagation not in _PROPAGATION:
            raise InvalidRequest(f"invalid mount config: invalid propagation mode: {mount.propagation}")
        if mount.kind is MountKind.BIND and not mount.source.startswith("/"):
            raise InvalidRequest(
                f"invalid mount config for type \"bind\": invalid mount path: '{mount.source}' "
                "mount path must be absolute"
            )
        if mount.kind is MountKind.VOLUME:
            check_volume_mount(mount)
        if mount.kind is MountKind.TMPFS:
            check_tmpfs_options(mount.options)
        elif mount.options:
            raise UnsupportedField(
                "HostConfig.Mounts", f"options {', '.join(mount.options)} of the {mount.kind} on {target}"
            )


def check_not_proc(kind: MountKind, target: str, source: str = "") -> None:
    """In the place of /proc nothing else is, or an image would say itself what its kernel tells of processes
    (runc: CVE-2019-19921).  Raises InvalidRequest in runc's words."""
    is_proc = kind is MountKind.BIND and os.path.exists(f"{source}/self/mountinfo")
    if target == "/proc" and not is_proc:
        raise InvalidRequest(f'"{target}" cannot be mounted because it is not of type proc')


def check_volume_mount(mount: MountSpec) -> None:
    """Raises InvalidRequest, NoSuchPlugin."""
    check_driver(mount.driver)
    check_options(mount.driver_options)
    if mount.source:
        check_volume_name(mount.source)
    if not mount.subpath:
        return
    if not mount.source:
        raise InvalidRequest(
            'invalid mount config for type "volume": must not set Subpath when using anonymous volumes'
        )
    if mount.subpath.startswith("/") or ".." in posixpath.normpath(mount.subpath).split("/"):
        raise InvalidRequest(
            'invalid mount config for type "volume": subpath must be a relative path within the volume'
        )


def parse_volumes_from(text: str) -> tuple[str, bool]:
    """`name[:ro|rw]` of `--volumes-from`: whose mounts, and whether read-only.  Raises InvalidRequest."""
    if not text:
        raise InvalidRequest("volumes-from specification cannot be an empty string")
    ref, _, mode = text.partition(":")
    words = mode.split(",") if mode else []
    access = [word for word in words if word in ("ro", "rw")]
    labels = [word for word in words if word in ("z", "Z")]
    others = [word for word in words if word in ("consistent", "cached", "delegated")]
    if len(words) != len(access) + len(labels) + len(others) or max(map(len, (access, labels, others))) > 1:
        raise InvalidRequest(f"invalid mode: {mode}")
    return ref, access == ["ro"]


def clean_target(untrusted_target: str) -> str:
    """An absolute path without `.`, `..` and double slashes.  Raises InvalidRequest."""
    if not untrusted_target.startswith("/"):
        raise InvalidRequest(
            f"invalid mount config: invalid mount path: '{untrusted_target}' mount path must be absolute"
        )
    if "\0" in untrusted_target:
        raise InvalidRequest("invalid mount config: a mount path holds a NUL byte")
    target = clean_path(untrusted_target)
    if target == "/":
        raise InvalidRequest("invalid specification: destination can't be '/'")
    if target.startswith("/proc/") and target not in _PROC_FILES:
        raise InvalidRequest(f'"{target}" cannot be mounted because it is inside /proc')
    return target


def check_tmpfs_options(options: Iterable[str]) -> None:
    """Raises InvalidRequest naming the option."""
    for option in options:
        key, equals, value = option.partition("=")
        good = (key in _TMPFS_VALUES and bool(value)) if equals else key in _TMPFS_FLAGS
        if not good:
            raise InvalidRequest(f'Invalid tmpfs option "{option}"')


def prepare_bind(mount: MountSpec) -> None:
    """The host's side is there; `-v` makes a missing directory, `--mount` refuses.  Synchronous.  Raises
    InvalidRequest, DiskFull."""
    if os.path.lexists(mount.source):
        if not os.path.exists(mount.source):
            raise InvalidRequest(
                'invalid mount config for type "bind": bind source path is a dangling symbolic link: '
                f"{mount.source}"
            )
        return
    if not (mount.legacy or mount.create_source):
        raise InvalidRequest(
            f'invalid mount config for type "bind": bind source path does not exist: {mount.source}'
        )
    with disk_errors(f"making {mount.source}"):
        try:
            os.makedirs(mount.source, mode=0o755, exist_ok=True)
        except OSError as error:
            raise InvalidRequest(
                f"error while creating mount source path '{mount.source}': {error.strerror}"
            ) from error
