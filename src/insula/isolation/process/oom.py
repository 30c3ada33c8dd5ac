"""Containers in which the kernel has killed something for want of memory, or would have, told at once.

conmon is told by the kernel and leaves an empty file `oom` in the container's run directory; one inotify
descriptor watches those of all containers, and the file is removed, so that the next time makes it anew.
conmon says nothing of a container that may not be killed (`OomKillDisable`, cgroup version 1): it then stands
still, and the kernel tells us itself.  Belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from insula.errors import Unavailable
from insula.system import cgroups, inotify

FILE = "oom"
_CONTROL = "memory.oom_control"


class OomWatch:
    def __init__(self) -> None:
        self.told: Callable[[str], None] = lambda _: None
        self._fd = -1
        self._ids: dict[int, str] = {}
        self._watches: dict[str, int] = {}
        self._paths: dict[str, str] = {}
        self._unkillable: dict[str, int] = {}

    def watch(self, instance_id: str, run_dir: str) -> None:
        """From now on.  A host that has no more watches gets no such news before the end."""
        with contextlib.suppress(Unavailable, FileNotFoundError):
            if self._fd < 0:
                self._fd = inotify.init()
                asyncio.get_running_loop().add_reader(self._fd, self._drain)
            number = inotify.watch_directory(self._fd, run_dir)
            self._ids[number] = instance_id
            self._watches[instance_id] = number
            self._paths[instance_id] = os.path.join(run_dir, FILE)

    def look(self, instance_id: str) -> None:
        """What happened while no daemon watched."""
        if os.path.exists(self._paths.get(instance_id, "")):
            asyncio.get_running_loop().call_soon(self._tell, instance_id)

    def watch_unkillable(self, instance_id: str, group: str) -> None:
        """One that may not be killed; `group` is its cgroup's directory of the controller `memory`."""
        event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(os.path.join(group, _CONTROL), os.O_RDONLY | os.O_CLOEXEC)
            try:
                with open(os.path.join(group, "cgroup.event_control"), "w", encoding="ascii") as file:
                    file.write(f"{event} {control}")
            finally:
                os.close(control)
        except OSError:  # version 2 has no such control, nor such containers; or it has just ended
            os.close(event)
            return
        self._unkillable[instance_id] = event
        asyncio.get_running_loop().add_reader(event, self._on_unkillable, instance_id, event, group)

    def _on_unkillable(self, instance_id: str, event: int, group: str) -> None:
        os.eventfd_read(event)
        if cgroups.read_table(os.path.join(group, _CONTROL)).get("under_oom"):  # not: the group is removed
            self.told(instance_id)

    def forget(self, instance_id: str) -> None:
        """Idempotent."""
        if (event := self._unkillable.pop(instance_id, -1)) >= 0:
            asyncio.get_running_loop().remove_reader(event)
            os.close(event)
        number = self._watches.pop(instance_id, None)
        if number is not None:
            del self._ids[number], self._paths[instance_id]
            inotify.remove_watch(self._fd, number)

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
        for event in self._unkillable.values():
            asyncio.get_running_loop().remove_reader(event)
            os.close(event)
        self._unkillable.clear()
        self._fd = -1
        self._ids.clear()
        self._watches.clear()
        self._paths.clear()

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number, name in inotify.parse_names(os.read(self._fd, 65536)):
                if name == FILE and (instance_id := self._ids.get(number)) is not None:
                    self._tell(instance_id)

    def _tell(self, instance_id: str) -> None:
        if (path := self._paths.get(instance_id)) is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # nor does the next daemon tell it again
            self.told(instance_id)
