"""inotify, as much of it as following a growing file needs.  Synchronous; descriptors are non-blocking."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator

from insula.errors import Unavailable

_IN_MODIFY = 0x2
_IN_CREATE = 0x100
_IN_DELETE_SELF = 0x400
_IN_Q_OVERFLOW = 0x4000
_HEAD = struct.Struct("=iIII")
_libc = ctypes.CDLL(None, use_errno=True)


def init() -> int:
    """A new inotify descriptor.  Raises Unavailable when the user has no more of them."""
    fd = int(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if fd < 0:
        raise _error("inotify_init1", "raise fs.inotify.max_user_instances")
    return fd


def add_watch(fd: int, path: str) -> int:
    """Watch the file for writes and for its removal; the same number for the same file.  Raises Unavailable,
    FileNotFoundError."""
    return _add_watch(fd, path, _IN_MODIFY | _IN_DELETE_SELF)


def watch_directory(fd: int, path: str) -> int:
    """Watch for what is made in it (`parse_names`).  Raises as `add_watch`."""
    return _add_watch(fd, path, _IN_CREATE)


def _add_watch(fd: int, path: str, mask: int) -> int:
    number = int(_libc.inotify_add_watch(fd, os.fsencode(path), mask))
    if number < 0:
        if ctypes.get_errno() == errno.ENOENT:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        raise _error(f"inotify_add_watch {path}", "raise fs.inotify.max_user_watches")
    return number


def remove_watch(fd: int, number: int) -> None:
    """Fine when the kernel has dropped it already (the file was deleted)."""
    _libc.inotify_rm_watch(fd, number)


def parse(raw: bytes) -> Iterator[tuple[int, bool]]:
    """(watch number, whether the kernel lost events) of each event read from the descriptor."""
    offset = 0
    while offset + _HEAD.size <= len(raw):
        number, mask, _cookie, length = _HEAD.unpack_from(raw, offset)
        yield number, bool(mask & _IN_Q_OVERFLOW)
        offset += _HEAD.size + length


def parse_names(raw: bytes) -> Iterator[tuple[int, str]]:
    """(watch number, name in that directory) of each event."""
    offset = 0
    while offset + _HEAD.size <= len(raw):
        number, _mask, _cookie, length = _HEAD.unpack_from(raw, offset)
        offset += _HEAD.size + length
        yield number, os.fsdecode(raw[offset - length : offset].rstrip(b"\0"))


def _error(what: str, hint: str) -> Unavailable:
    return Unavailable(f"{what}: {os.strerror(ctypes.get_errno())}", hint=hint)
