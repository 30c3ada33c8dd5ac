"""openat2(2): open a name inside a root that somebody else may be changing meanwhile.  Synchronous."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_SYS_OPENAT2 = 437  # the same on every architecture
_RESOLVE_NO_MAGICLINKS, _RESOLVE_BENEATH, _RESOLVE_IN_ROOT = 0x02, 0x08, 0x10
_TRIES = 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def open_in_root(root_fd: int, path: str | bytes, flags: int, mode: int = 0) -> int:
    """Open `path` with `root_fd` as the root: absolute symlinks and `..` stay inside, no magic links.

    Raises OSError as os.open does.
    """
    return _open(root_fd, path, flags, mode, _RESOLVE_IN_ROOT)


def open_beneath(root_fd: int, path: str | bytes, flags: int, mode: int = 0) -> int:
    """Open `path` below `root_fd`; one that leads out of it, by `..` or a link, is an error (EXDEV)."""
    return _open(root_fd, path, flags, mode, _RESOLVE_BENEATH)


def _open(root_fd: int, path: str | bytes, flags: int, mode: int, resolve: int) -> int:
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve | _RESOLVE_NO_MAGICLINKS)
    for _ in range(_TRIES):
        fd: int = _libc.syscall(
            _SYS_OPENAT2, root_fd, ctypes.c_char_p(os.fsencode(path) or b"."), how, ctypes.c_size_t(len(how))
        )
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number != errno.EAGAIN:  # the kernel saw a rename or mount race and wants us to try again
            break
    raise OSError(number, os.strerror(number), os.fsdecode(path))
