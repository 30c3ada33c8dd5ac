"""Where programs of this backend are started: one thread with its own working directory and, on hybrid
cgroup hosts, its own mount namespace.  Async towards the backend.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from typing import TypeVar

from insula.isolation.plan import LaunchPlan
from insula.model.mounts import MountKind
from insula.system import mounts
from insula.system.cgroups import Layout
from insula.system.mountns import MountThread
from insula.system.namespaces import share_directory

log = logging.getLogger(__name__)

T = TypeVar("T")

_SHARED = ("roots", "netns", "mounts")


class _OutOfView(Exception):
    """The namespace does not show what is mounted on the host."""


class Launcher:
    """Directories below `exec_root` are made shared, so that the namespace sees what is mounted there."""

    def __init__(self, layout: Layout, exec_root: str) -> None:
        self._hidden = layout.unified if layout.hybrid else ""
        self._exec_root = exec_root
        self._thread: MountThread | None = None

    def prepare(self) -> None:
        """Before the first mount below exec_root.  Idempotent."""
        if self._hidden:
            for name in _SHARED:
                share_directory(f"{self._exec_root}/{name}")

    async def run(self, function: Callable[[], T], plan: LaunchPlan | None = None) -> T:
        """In the thread; what is mounted for `plan` must be visible there.

        Our own mounts are, unless somebody made them private meanwhile (`mount --make-rprivate /`): the
        runtime would then find, and fill, the bare directories below them.
        """
        if self._thread is not None and plan is not None and self._is_stale(self._thread, plan):
            self._renew(self._thread)
        thread = self._open()
        if not self._hidden or plan is None:
            return await asyncio.wrap_future(thread.submit(function))
        wanted = [(path, _identity(path)) for path in self._own_mounts(plan)]

        def run_in_view() -> T:
            if any(_identity(path) != identity for path, identity in wanted):
                raise _OutOfView
            return function()

        try:
            return await asyncio.wrap_future(thread.submit(run_in_view))
        except _OutOfView:
            log.warning("mounts below %s do not propagate any more: sharing them again", self._exec_root)
            self.prepare()
            self._renew(thread)
            return await asyncio.wrap_future(self._open().submit(function))

    def _open(self) -> MountThread:
        if self._thread is None:
            self._thread = MountThread(self._hidden)
        return self._thread

    def _renew(self, thread: MountThread) -> None:
        """In the place of `thread`, unless another has taken it already."""
        if self._thread is thread:
            self.close()

    def _own_mounts(self, plan: LaunchPlan) -> list[str]:
        paths = [plan.directory.merged if plan.directory else "", plan.netns]
        paths += [mount.source for mount in plan.mounts if mount.kind is MountKind.BIND]
        return [path for path in paths if path.startswith(f"{self._exec_root}/")]

    def _is_stale(self, thread: MountThread, plan: LaunchPlan) -> bool:
        if not self._hidden or not any(m.kind is MountKind.BIND for m in plan.mounts):
            return False
        return thread.changed(ignore=(self._exec_root,))

    def close(self) -> None:
        if self._thread is not None:
            self._thread.close()
            self._thread = None

    def tidy(self) -> None:
        """Undo `prepare` where nothing is mounted any more."""
        if not self._hidden:
            return
        for name in _SHARED:
            path = os.path.realpath(f"{self._exec_root}/{name}")
            if mounts.mount_points(path) == (path,):
                mounts.umount(path)


def _identity(path: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return None
