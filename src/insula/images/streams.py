"""Bytes that come asynchronously, for synchronous code in a thread.  Async."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from insula.errors import Failure

_T = TypeVar("_T")


class _SocketSource:
    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.broken = False

    def read(self, size: int, /) -> bytes:
        data = self._end.recv(size)
        if not data and self.broken:  # not to be taken for the end of a complete stream
            raise Failure("the data broke off")
        return data


async def with_stream(data: AsyncIterator[bytes], work: Callable[[_SocketSource], _T]) -> _T:
    """Run `work` in a thread with a readable source of `data`, with back-pressure.

    What `work` raises is raised.  If `data` raises, or the caller is cancelled, `work` sees its input end
    early and is waited for, and the first error is raised.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    source = _SocketSource(theirs)

    def run() -> _T:
        with theirs:
            return work(source)

    async def pump() -> None:
        loop = asyncio.get_running_loop()
        async for piece in data:
            try:
                await loop.sock_sendall(ours, piece)
            except (BrokenPipeError, ConnectionResetError):
                return  # `work` has ended without reading all; what it says of that is what counts
        ours.shutdown(socket.SHUT_WR)

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
        ours.close()
        if not working.done():
            await asyncio.wait({working})
        for task in (pumping, working):  # both have been heard
            if not task.cancelled():
                task.exception()
