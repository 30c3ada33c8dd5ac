"""A thread in a mount namespace of its own, from which programs are started that must not see some mount.

For crun on hosts with hybrid cgroups: crun refuses to run where /sys/fs/cgroup/unified is a cgroup2 mount
(containers/crun, src/libcrun/cgroup-utils.c), so it is started from a namespace in which that is unmounted.
posix_spawn from this thread costs no exec of `nsenter` (2 ms each).  The namespace needs no file and no
clean-up: it lives as long as the thread and what was started in it.

Mounts made on the host afterwards are seen only below shared mounts (`namespaces.share_directory`), which
with systemd is everything.  On a host with private mounts, `changed` tells that a fresh one is wanted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from insula.errors import Failure, Unavailable
from insula.system import mounts

_CLONE_FS = 0x200
_CLONE_NEWNS = 0x20000
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


class MountThread:
    """Runs functions, one after the other, in a thread whose working directory is its own.

    With `hidden`, also in a fresh mount namespace where that is not mounted.
    """

    def __init__(self, hidden: str = "") -> None:
        """Raises Unavailable without CAP_SYS_ADMIN."""
        self._hidden = hidden
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="mountns", daemon=True)
        self._seen = _points()
        self._thread.start()
        ready.result()

    def _run(self, ready: Future[None]) -> None:
        try:
            if _libc.unshare(_CLONE_FS | (_CLONE_NEWNS if self._hidden else 0)) != 0:
                raise Unavailable(f"cannot make a mount namespace: {os.strerror(ctypes.get_errno())}")
            if self._hidden:
                mounts.make_slave("/")
                while os.path.ismount(self._hidden):  # stacked ones too; /proc/self is not this thread's
                    mounts.umount(self._hidden, lazy=True)
        except BaseException as error:  # whoever starts the thread gets it
            ready.set_exception(error)
            return
        ready.set_result(None)
        while (job := self._jobs.get()) is not None:
            job()

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Run it there."""
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._jobs.put(job)
        return future

    def changed(self, ignore: tuple[str, ...]) -> bool:
        """Whether mounts outside of the directories `ignore` came or went since this one was made."""
        return _without(_points(), ignore) != _without(self._seen, ignore)

    def close(self) -> None:
        """End the thread after what was submitted."""
        self._jobs.put(None)
        self._thread.join()


def share_mount(source_pid: int, target_pid: int, path: str) -> None:
    """What is mounted at `path` in the mount namespace of one process is shown there in another's, in the
    place of what is mounted there now.  Raises Failure, Unavailable.

    `path` in the first is not trusted, but leads nowhere else than into that namespace.
    """
    thread = MountThread()
    try:
        thread.submit(lambda: _share_mount(source_pid, target_pid, path)).result()
    finally:
        thread.close()


def _share_mount(source_pid: int, target_pid: int, path: str) -> None:
    with contextlib.ExitStack() as stack:

        def namespace(pid: int) -> int:
            fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            return fd

        try:
            source, target = namespace(source_pid), namespace(target_pid)
        except OSError as error:
            raise Failure(f"cannot share {path}: {error.strerror}") from error
        _check(_libc.setns(source, _CLONE_NEWNS), f"cannot share {path}")
        name = os.fsencode(path)
        tree = _libc.syscall(
            _SYS_OPEN_TREE, _AT_FDCWD, name, _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_SYMLINK_NOFOLLOW
        )
        _check(tree, f"cannot share {path}")
        stack.callback(os.close, tree)
        _check(_libc.setns(target, _CLONE_NEWNS), f"cannot share {path}")
        mounts.umount(path, lazy=True)
        moved = _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, name, _MOVE_MOUNT_F_EMPTY_PATH)
        _check(moved, f"cannot share {path}")


def _check(result: int, action: str) -> None:
    if result < 0:
        raise Failure(f"{action}: {os.strerror(ctypes.get_errno())}")


def _points() -> frozenset[tuple[str, str]]:
    """(mount id, mount point) of this process's mounts."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        fields = [line.split(" ", 5) for line in file]
    return frozenset((f[0], f[4]) for f in fields)


def _without(points: frozenset[tuple[str, str]], ignore: tuple[str, ...]) -> frozenset[tuple[str, str]]:
    return frozenset(p for p in points if not p[1].startswith(ignore)) if ignore else points
