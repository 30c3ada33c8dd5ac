"""Bytes that come asynchronously, for synchronous code in a thread.  Async."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from insula.errors import Failure

_T = TypeVar("_T")
_HIGH = 4 << 20  # bytes that may wait for the thread


class _Source:
    """Filled by the event loop, read by one thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._changed = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._rest = memoryview(b"")  # of the piece that is being read: the thread's
        self._size = 0
        self._ended = self._left = False
        self.broken = False

    # the loop's

    async def put(self, piece: bytes) -> bool:
        """Waits while much is waiting.  False: nobody reads any more."""
        while self._size > _HIGH and not self._left:
            self._room.clear()
            if self._size > _HIGH and not self._left:
                await self._room.wait()
        with self._changed:
            self._pieces.append(piece)
            self._size += len(piece)
            self._changed.notify()
        return not self._left

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()

    # the thread's

    def read(self, size: int) -> bytes:
        if not self._rest:
            self._rest = memoryview(self._next())
        piece, self._rest = self._rest[:size], self._rest[size:]
        if not piece and self.broken:  # not to be taken for the end of a complete stream
            raise Failure("the data broke off")
        # what was put whole goes on as it is: not copied once more
        return piece.obj if len(piece) == len(piece.obj) else bytes(piece)  # type: ignore[arg-type,return-value]

    def _next(self) -> bytes:
        with self._changed:
            while not self._pieces and not self._ended:
                self._changed.wait()
            if not self._pieces:
                return b""
            piece = self._pieces.popleft()
            was_full = self._size > _HIGH
            self._size -= len(piece)
            is_full = self._size > _HIGH
        if was_full and not is_full:
            self._wake()
        return piece or self._next()

    def leave(self) -> None:
        with self._changed:
            self._left = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._room.set)


async def with_stream(data: AsyncIterator[bytes], work: Callable[[_Source], _T]) -> _T:
    """Run `work` in a thread with a readable source of `data`, with back-pressure.

    What `work` raises is raised.  If `data` raises, or the caller is cancelled, `work` sees its input end
    early and is waited for, and the first error is raised.
    """
    source = _Source()

    def run() -> _T:
        try:
            return work(source)
        finally:
            source.leave()

    async def pump() -> None:
        async for piece in data:
            if not await source.put(piece):
                return  # `work` has ended without reading all; what it says of that is what counts
        source.end()

    working = asyncio.create_task(asyncio.to_thread(run))
    pumping = asyncio.create_task(pump())
    try:
        await asyncio.wait({working, pumping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and (error := pumping.exception()) is not None:
            raise error
        return await asyncio.shield(working)
    finally:
        source.broken = True
        pumping.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await asyncio.wait({pumping})
        source.end()
        if not working.done():
            await asyncio.wait({working})
        for task in (pumping, working):  # both have been heard
            if not task.cancelled():
                task.exception()
