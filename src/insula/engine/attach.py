"""Streams between a client and the main process: before start, filtered, and with the past first.  Async.

The backends' streams carry what comes from now on.  Here are the ones around them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from insula.engine.types import LogRecord
from insula.model.stream import Channel, Chunk, Stream


class PendingStream:
    """Attached before there is a workload: everything waits until `connect`."""

    def __init__(self, forget: Callable[[PendingStream], None]) -> None:
        self._forget = forget
        self._inner: Stream | None = None
        self._ready = asyncio.Event()

    async def connect(self, attach: Callable[[], Awaitable[Stream]]) -> None:
        inner = await attach()
        if self._ready.is_set():  # the client went while we attached
            await inner.close()
            return
        self._inner = inner
        self._ready.set()

    def end(self) -> None:
        """There will be no workload."""
        self._ready.set()

    async def read(self) -> Chunk | None:
        await self._ready.wait()
        return None if self._inner is None else await self._inner.read()

    async def write(self, data: bytes) -> None:
        await self._ready.wait()
        if self._inner is not None:
            await self._inner.write(data)

    async def close_stdin(self) -> None:
        await self._ready.wait()
        if self._inner is not None:
            await self._inner.close_stdin()

    async def close(self) -> None:
        self._forget(self)
        self._ready.set()
        if self._inner is not None:
            await self._inner.close()


class FilteredStream:
    """Only the directions that the client asked for."""

    def __init__(self, inner: Stream, *, stdin: bool, stdout: bool, stderr: bool) -> None:
        self._inner = inner
        self._stdin = stdin
        self._shown = {Channel.STDOUT: stdout, Channel.STDERR: stderr}

    async def read(self) -> Chunk | None:
        while (chunk := await self._inner.read()) is not None:
            if self._shown.get(chunk.channel, False):
                return chunk
        return None

    async def write(self, data: bytes) -> None:
        if self._stdin:
            await self._inner.write(data)

    async def close_stdin(self) -> None:
        if self._stdin:
            await self._inner.close_stdin()

    async def close(self) -> None:
        await self._inner.close()


class LoggedStream:
    """Output from the log, past and present; a live stream, if any, only for input.

    With one source there is neither a gap nor a piece twice between what was and what is.
    """

    def __init__(self, records: AsyncIterator[LogRecord], live: Stream | None) -> None:
        self._records = records
        self._live = live
        self._drain = asyncio.create_task(_discard(live)) if live is not None else None

    async def read(self) -> Chunk | None:
        async for record in self._records:
            return Chunk(record.channel, record.data)
        return None

    async def write(self, data: bytes) -> None:
        if self._live is not None:
            await self._live.write(data)

    async def close_stdin(self) -> None:
        if self._live is not None:
            await self._live.close_stdin()

    async def close(self) -> None:
        if self._drain is not None:
            self._drain.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._drain
        if self._live is not None:
            await self._live.close()
        await _close(self._records)


class ChainedStream:
    """The log of earlier runs to its end, then `later`."""

    def __init__(self, records: AsyncIterator[LogRecord], later: Stream) -> None:
        self._records: AsyncIterator[LogRecord] | None = records
        self._later = later

    async def read(self) -> Chunk | None:
        if self._records is not None:
            async for record in self._records:
                return Chunk(record.channel, record.data)
            self._records = None
        return await self._later.read()

    async def write(self, data: bytes) -> None:
        await self._later.write(data)

    async def close_stdin(self) -> None:
        await self._later.close_stdin()

    async def close(self) -> None:
        await self._later.close()
        if self._records is not None:
            await _close(self._records)


async def _close(records: AsyncIterator[LogRecord]) -> None:
    close = getattr(records, "aclose", None)
    if close is not None:
        # RuntimeError: a reader is still in it, and whoever closes the stream is about to cancel that
        with contextlib.suppress(RuntimeError):
            await close()


async def _discard(stream: Stream) -> None:
    while await stream.read() is not None:
        pass
