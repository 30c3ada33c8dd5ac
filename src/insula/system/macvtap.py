"""The character device of a macvtap: a virtual machine's end of it.  Synchronous.

The kernel names the device /dev/tapN by the link's index.  In another network namespace than the host's that
name may be another link's, and where /dev is no devtmpfs there is none: so its number is read from a sysfs of
the calling thread's own namespace, and the node is made, each on a file system of its own that is mounted
nowhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Iterator

from insula.errors import Failure

_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_CLOEXEC = 1
_CMD_CREATE = 6

_libc = ctypes.CDLL(None, use_errno=True)


def open_macvtap(name: str) -> int:
    """A descriptor for QEMU's `-netdev tap,fd=`: frames carry a virtio-net header, as `tap.open_tap`'s.
    Close-on-exec.  Raises Failure."""
    try:
        with _detached("sysfs") as sysfs:
            device = _device_number(sysfs, name)
        with _detached("tmpfs") as scratch:
            os.mknod("tap", stat.S_IFCHR | 0o600, device, dir_fd=scratch)
            return os.open("tap", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=scratch)
    except OSError as error:
        raise Failure(f"cannot open the macvtap device {name}: {error.strerror}") from error


def _device_number(sysfs: int, name: str) -> int:
    directory = os.open(f"class/net/{name}/macvtap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=sysfs)
    try:
        (tap,) = os.listdir(directory)
        fd = os.open(f"{tap}/dev", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        with open(fd, encoding="ascii") as file:
            major, _, minor = file.read().strip().partition(":")
    finally:
        os.close(directory)
    return os.makedev(int(major), int(minor))


@contextlib.contextmanager
def _detached(kind: str) -> Iterator[int]:
    """The root of a file system that is mounted nowhere, and gone with the descriptor."""
    context = _check(_libc.syscall(_SYS_FSOPEN, kind.encode(), _CLOEXEC))
    try:
        _check(_libc.syscall(_SYS_FSCONFIG, context, _CMD_CREATE, None, None, 0))
        root = _check(_libc.syscall(_SYS_FSMOUNT, context, _CLOEXEC, 0))
    finally:
        os.close(context)
    try:
        yield root
    finally:
        os.close(root)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
