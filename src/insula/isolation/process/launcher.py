"""Where programs of this backend are started: one thread with its own working directory and, on hybrid
cgroup hosts, its own mount namespace.  Async towards the backend.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TypeVar

from insula.isolation.plan import LaunchPlan
from insula.model.mounts import MountKind
from insula.system import mounts
from insula.system.cgroups import Layout
from insula.system.mountns import MountThread
from insula.system.namespaces import share_directory

T = TypeVar("T")

_SHARED = ("roots", "netns", "mounts")


class Launcher:
    """Directories below `exec_root` are made shared, so that the namespace sees what is mounted there."""

    def __init__(self, layout: Layout, exec_root: str) -> None:
        self._hidden = layout.unified if layout.hybrid else ""
        self._exec_root = exec_root
        self._thread: MountThread | None = None

    def prepare(self) -> None:
        """Before the first mount below exec_root."""
        if self._hidden:
            for name in _SHARED:
                share_directory(f"{self._exec_root}/{name}")

    async def run(self, function: Callable[[], T], plan: LaunchPlan | None = None) -> T:
        """In the thread; for `plan` its binds must be visible there."""
        if self._thread is not None and plan is not None and self._is_stale(self._thread, plan):
            self._thread.close()
            self._thread = None
        if self._thread is None:
            self._thread = MountThread(self._hidden)
        return await asyncio.wrap_future(self._thread.submit(function))

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
