"""What launch and exec look up: the user, the working directory, the program, devices.  Synchronous.

Everything in the root is untrusted; only `system.inroot` and `system.openat` open it.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from collections.abc import Iterable, Iterator

from insula.errors import CannotEnter, CommandNotExecutable, CommandNotFound, InvalidRequest
from insula.isolation.plan import Device, LaunchPlan, Process
from insula.isolation.process.spec import DeviceNode
from insula.isolation.users import Identity, find_identity
from insula.model.mounts import Mount, MountKind
from insula.system.inroot import is_dangling, make_directory_in_root, read_in_root
from insula.system.openat import open_in_root

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# moby skips these for --privileged (devices.go, HostDevices)
_NOT_DEVICES = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", "console", ".udev"})


def identify(root: int, process: Process) -> Identity:
    """`root`: descriptor of the instance's root directory.  Raises InvalidRequest for unknown names."""
    user, numeric = process.user, process.user.replace(":", "").isdecimal()
    passwd = read_in_root(root, "/etc/passwd")
    # a group file is read only when something of it is wanted
    group = "" if (numeric and ":" in user and not process.groups) else read_in_root(root, "/etc/group")
    return find_identity(user, process.groups, passwd, group)


def make_cwd(root: int, process: Process) -> None:
    """As Docker does, root's.  Raises InvalidRequest when something else is in its place."""
    if process.cwd in ("", "/"):
        return
    try:
        make_directory_in_root(root, process.cwd, 0, 0)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ELOOP):
            raise InvalidRequest(f"the working directory {process.cwd} is not a directory") from error
        raise


def make_mount_points(root: int, plan: LaunchPlan, files: Iterable[str] = ()) -> None:
    """Where a directory (or one of `files`) is to be mounted behind a link to what is not there: crun (1.8)
    makes what is plainly missing, but not that; runc does.  What cannot be made crun complains of."""
    targets = [m.target for m in plan.mounts if m.kind is MountKind.TMPFS or os.path.isdir(m.source)]
    for target in (*targets, *map(os.path.dirname, files)):
        if is_dangling(root, target):
            try:
                make_directory_in_root(root, target, 0, 0)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise


def check_cwd(root: int, process: Process) -> None:
    """For an exec, which makes none.  Raises CannotEnter; whether its user may is the runtime's to say."""
    if process.cwd in ("", "/"):
        return
    try:
        os.close(open_in_root(root, process.cwd, os.O_PATH | os.O_DIRECTORY))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        raise CannotEnter(process.cwd, (error.strerror or "").lower()) from error


def mounts_by_kind(plan: LaunchPlan) -> tuple[Mount, ...]:
    """The plan's mounts, where those of files and sockets say that nothing is below them.

    crun (1.8) cannot make a file read-only with all that is below it: it opens the file as a directory.
    """
    return tuple(
        mount
        if mount.kind is MountKind.TMPFS or os.path.isdir(mount.source)
        else dataclasses.replace(mount, recursive=False)
        for mount in plan.mounts
    )


def find_devices(plan: LaunchPlan) -> tuple[DeviceNode, ...]:
    """Raises InvalidRequest for a path of the host that is no device."""
    if plan.security.privileged:
        host = tuple(_host_devices("/dev"))
        asked = tuple(node for device in plan.security.devices for node in _nodes(device))
        taken = {node.path for node in asked}
        return asked + tuple(node for node in host if node.path not in taken)
    return tuple(node for device in plan.security.devices for node in _nodes(device))


def find_block_devices(plan: LaunchPlan) -> tuple[tuple[int, int], ...]:
    """(major, minor) of what the plan's throttles name.  Raises InvalidRequest."""
    found = []
    for throttle in plan.limits.throttles:
        try:
            status = os.stat(throttle.path)
        except OSError as error:
            # in Go's words: docker's exit code is 127 for them
            raise InvalidRequest(f"stat {throttle.path}: {(error.strerror or '').lower()}") from error
        if not stat.S_ISBLK(status.st_mode):
            raise InvalidRequest(f"cannot limit block I/O on {throttle.path}: it is no block device")
        found.append((os.major(status.st_rdev), os.minor(status.st_rdev)))
    return tuple(found)


def _nodes(device: Device) -> Iterator[DeviceNode]:
    """Of a directory those in it, and below; of links there none, as in Docker (/sys has loops)."""
    wrong = f'error gathering device information while adding custom device "{device.host_path}"'
    try:
        found = os.stat(device.host_path)
    except OSError as error:
        raise InvalidRequest(f"{wrong}: {(error.strerror or '').lower()}") from error
    if _is_device(found):
        yield _node(found, device.path, device.rules)
        return
    nodes = list(_nodes_below(device.host_path.rstrip("/"), device.path.rstrip("/"), device.rules))
    if not nodes:
        raise InvalidRequest(f"{wrong}: not a device node")
    yield from nodes


def _nodes_below(host_path: str, path: str, rules: str) -> Iterator[DeviceNode]:
    for directory, _, names in os.walk(host_path):
        for name in sorted(names):
            source = f"{directory}/{name}"
            try:
                found = os.lstat(source)
            except OSError:
                continue  # it has just gone
            if _is_device(found):
                yield _node(found, path + source.removeprefix(host_path), rules)


def _node(found: os.stat_result, path: str, rules: str) -> DeviceNode:
    return DeviceNode(
        path=path,
        kind="c" if stat.S_ISCHR(found.st_mode) else "b",
        major=os.major(found.st_rdev),
        minor=os.minor(found.st_rdev),
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        rules=rules or "rwm",
    )


def _is_device(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)


def _host_devices(directory: str) -> Iterator[DeviceNode]:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name in _NOT_DEVICES or entry.is_symlink():
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _host_devices(entry.path)
            elif _is_device(found := entry.stat(follow_symlinks=False)):
                yield _node(found, entry.path, "rwm")


def check_program(root: int, process: Process, identity: Identity) -> None:
    """Look for the program as execvp would.  Raises CommandNotFound, CommandNotExecutable.

    A quick answer, not the last word: a missing interpreter shows only when it is executed.
    """
    name = process.args[0]
    if "/" in name:
        path = name if name.startswith("/") else f"{process.cwd.rstrip('/')}/{name}"
        found = _look(root, path, identity)
        if found is None:
            raise CommandNotFound(name, "no such file or directory")
        if not found:
            raise CommandNotExecutable(name)
        return
    search = next((e[5:] for e in process.env if e.startswith("PATH=")), "") or _DEFAULT_PATH
    denied = False
    for directory in search.split(":"):
        found = _look(root, f"{directory or '.'}/{name}", identity)
        if found:
            return
        denied = denied or found is False
    raise CommandNotExecutable(name) if denied else CommandNotFound(name)


def _look(root: int, path: str, identity: Identity) -> bool | None:
    """Whether it can be executed; None: it is not there."""
    try:
        fd = open_in_root(root, path, os.O_PATH)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    if stat.S_ISDIR(found.st_mode):
        return False
    if identity.uid == 0:
        return bool(found.st_mode & 0o111)
    if found.st_uid == identity.uid:
        return bool(found.st_mode & 0o100)
    if found.st_gid == identity.gid or found.st_gid in identity.groups:
        return bool(found.st_mode & 0o010)
    return bool(found.st_mode & 0o001)
