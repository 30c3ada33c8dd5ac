"""Containers in which the kernel has killed something for want of memory, or would have, told at once.

conmon is told by the kernel and leaves an empty file `oom` in the container's run directory; one inotify
descriptor watches those of all containers, and the file is removed, so that the next time makes it anew.
Belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

from insula.errors import Unavailable
from insula.system import inotify

FILE = "oom"


class OomWatch:
    def __init__(self) -> None:
        self.told: Callable[[str], None] = lambda _: None
        self._fd = -1
        self._ids: dict[int, str] = {}
        self._watches: dict[str, int] = {}
        self._paths: dict[str, str] = {}

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

    def forget(self, instance_id: str) -> None:
        """Idempotent."""
        number = self._watches.pop(instance_id, None)
        if number is not None:
            del self._ids[number], self._paths[instance_id]
            inotify.remove_watch(self._fd, number)

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
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
