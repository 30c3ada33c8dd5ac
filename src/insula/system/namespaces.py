"""Network namespaces as files, and directories whose mounts other mount namespaces see.  Synchronous.

`keep_netns`, `enter` and `unshare_net` act on the calling *thread*: call them from a thread of your own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

from insula.errors import Failure, Unavailable
from insula.system import mounts

CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def share_directory(path: str) -> None:
    """Make `path` a shared mount of itself, so that mounts made below it later also appear in mount
    namespaces split off meanwhile (crun's, where it runs in one of its own).  Idempotent; made if missing.

    Call it before anything is mounted below: what is there already would be hidden.
    """
    os.makedirs(path, mode=0o711, exist_ok=True)
    if not mounts.is_mounted(path):
        mounts.bind(path, path, recursive=True)
    mounts.make_shared(path)


def unshare_directory(path: str) -> None:
    """The reverse, once nothing is mounted below; also removes the directory if it is empty.  Idempotent."""
    with contextlib.suppress(FileNotFoundError):
        mounts.umount(path, lazy=True)
        with contextlib.suppress(OSError):  # not empty: somebody else's
            os.rmdir(path)


def unshare_net() -> None:
    """Put the calling thread into a new network namespace.  Raises Unavailable, Failure."""
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise _failure("make a network namespace")


def enter(netns_fd: int) -> None:
    """Put the calling thread into the network namespace that `netns_fd` refers to.  Raises Unavailable,
    Failure."""
    if _libc.setns(netns_fd, CLONE_NEWNET) != 0:
        raise _failure("enter a network namespace")


def open_netns() -> int:
    """The calling thread's network namespace, as a file descriptor."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def keep_netns(path: str) -> None:
    """Let the calling thread's network namespace live on as the file `path`, without any process in it."""
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    try:
        mounts.mount("/proc/thread-self/ns/net", path, flags=mounts.MS_BIND)
    except BaseException:
        os.unlink(path)
        raise


def drop_netns(path: str) -> None:
    """The reverse; the namespace goes once nothing else holds it.  Idempotent."""
    with contextlib.suppress(FileNotFoundError):
        mounts.umount(path, lazy=True)
        os.unlink(path)


def _failure(action: str) -> Failure | Unavailable:
    number = ctypes.get_errno()
    if number == 1:
        return Unavailable(
            f"cannot {action}: {os.strerror(number)}", hint="the daemon needs root with CAP_SYS_ADMIN"
        )
    return Failure(f"cannot {action}: {os.strerror(number)}")
