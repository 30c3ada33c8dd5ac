"""Taking turns on the event loop, for those who have much to do there.  Async.

A task that reads a log works for some milliseconds between two waits, and there may be hundreds.  All that
are ready run in one round of the loop, and whoever asks for something else waits for all of them, in each of
the rounds that a request takes.  So of those who take turns only so many run in a round as its time allows.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

_ROUND_S = 0.002
_AT_ONCE = 8


class Turns:
    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._going = False
        self._began = 0.0

    async def take(self) -> None:
        """Returns in a round that has time left; what is done before the next wait is a turn."""
        loop = asyncio.get_running_loop()
        while not self._has_time(loop):
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn  # one that is cancelled is passed over

    def _has_time(self, loop: asyncio.AbstractEventLoop) -> bool:
        now = time.monotonic()
        if not self._going:
            self._going, self._began = True, now
            loop.call_soon(self._next_round, loop)
            return True
        return now - self._began < _ROUND_S

    def _next_round(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._waiting:
            self._going = False
            return
        self._began = time.monotonic()
        for _ in range(min(_AT_ONCE, len(self._waiting))):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
        loop.call_soon(self._next_round, loop)
