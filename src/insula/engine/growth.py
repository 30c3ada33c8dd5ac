"""Waking whoever follows a file when it grows: one inotify descriptor for the whole daemon.  Async.

The kernel allows a user few inotify instances (128 by default) and many watches, so followers share one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator

from insula.engine.batches import Batches
from insula.engine.turns import Turns
from insula.system import inotify


class Follower(asyncio.Event):
    """Set whenever the file is written to.  `file` is the kernel's number for that.  `offset`: up to where
    its owner has read, if that reads."""

    offset: int | None = None

    def __init__(self, file: int) -> None:
        super().__init__()
        self.file = file


class Growth:
    def __init__(self) -> None:
        self._fd = -1
        self._events: dict[int, set[Follower]] = {}
        self._watches: dict[str, int] = {}
        self.batches = Batches()
        self.turns = Turns()

    @contextlib.contextmanager
    def watch(self, path: str) -> Iterator[Follower]:
        """Of the file at `path`, which exists."""
        if self._fd < 0:
            self._fd = inotify.init()
            asyncio.get_running_loop().add_reader(self._fd, self._drain)
        number = self._watches.get(path)
        if number is None:
            number = inotify.add_watch(self._fd, path)
            self._watches[path] = number
        event = Follower(number)
        followers = self._events.setdefault(number, set())
        followers.add(event)
        try:
            yield event
        finally:
            followers.discard(event)
            if not followers and self._events.get(number) is followers:
                self._forget(path, number)

    def unread(self, path: str) -> int | None:
        """Where the slowest reader of a file is; None: nobody follows it."""
        followers = self._events.get(self._watches.get(path, -1), ())
        return min((one.offset for one in followers if one.offset is not None), default=None)

    def is_shared(self, follower: Follower) -> bool:
        """Somebody else follows the same file."""
        return len(self._events.get(follower.file, ())) > 1

    def poke(self, path: str) -> None:
        """Wake the followers of a file: it will not grow any more."""
        for event in self._events.get(self._watches.get(path, -1), ()):
            event.set()

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
        self._fd = -1
        self._events.clear()
        self._watches.clear()

    def _forget(self, path: str, number: int) -> None:
        del self._events[number]
        del self._watches[path]
        self.batches.forget(number)
        inotify.remove_watch(self._fd, number)

    def _drain(self) -> None:
        try:
            raw = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        for number, overflow in inotify.parse(raw):
            if overflow:
                for followers in self._events.values():
                    for event in followers:
                        event.set()
            for event in self._events.get(number, ()):
                event.set()
