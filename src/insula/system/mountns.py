"""A thread in a mount namespace of its own, from which programs are started that must not see some mount.

For crun on hosts with hybrid cgroups: crun refuses to run where /sys/fs/cgroup/unified is a cgroup2 mount
(containers/crun, src/libcrun/cgroup-utils.c), so it is started from a namespace in which that is unmounted.
posix_spawn from this thread costs no exec of `nsenter` (2 ms each).  The namespace needs no file and no
clean-up: it lives as long as the thread and what was started in it.

Mounts made on the host afterwards are seen only below shared mounts (`namespaces.share_directory`), which
with systemd is everything.  On a host with private mounts, `changed` tells that a fresh one is wanted.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from insula.errors import Unavailable
from insula.system import mounts

_CLONE_FS = 0x200
_CLONE_NEWNS = 0x20000
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


def _points() -> frozenset[tuple[str, str]]:
    """(mount id, mount point) of this process's mounts."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        fields = [line.split(" ", 5) for line in file]
    return frozenset((f[0], f[4]) for f in fields)


def _without(points: frozenset[tuple[str, str]], ignore: tuple[str, ...]) -> frozenset[tuple[str, str]]:
    return frozenset(p for p in points if not p[1].startswith(ignore)) if ignore else points
