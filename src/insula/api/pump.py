"""Between a hijacked connection and the stdio of a workload or an exec.  Async."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from insula.api import mux
from insula.api.call import Call
from insula.api.escape import EscapeScanner
from insula.api.hijack import Hijacked, hijack
from insula.errors import InsulaError
from insula.model.stream import Channel, Stream

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """`tty`: it is a terminal, so detach keys count.  `framed`: output in Docker's frames, else raw bytes.
    `stdin`: input is for the workload."""

    tty: bool
    framed: bool
    stdin: bool
    detach_keys: bytes
    content_type: str


async def pump(call: Call, stream: Stream, terms: Terms) -> tuple[web.StreamResponse, bool]:
    """Until the output ends, the client goes, or the detach keys come.  Returns what the handler is to
    return, and whether the client detached.  Closes the stream in every case."""
    try:
        connection = hijack(call.http, terms.content_type)
        try:
            detached = await converse(connection.read, connection.write, stream, terms)
        except asyncio.CancelledError:
            connection.abort()
            raise
    finally:
        await stream.close()
    await connection.finish()
    return Hijacked(), detached


async def converse(
    read: Callable[[], Awaitable[bytes]],
    write: Callable[[bytes], Awaitable[None]],
    stream: Stream,
    terms: Terms,
    *,
    gone: Callable[[], bool] = lambda: False,
) -> bool:
    """Both ways, until the output ends, the detach keys come (then True), or the input has ended and `gone`
    says that with it the client went.  `read` answers b"" at the end of the input."""
    feeding = asyncio.create_task(_feed(read, stream, terms))
    showing = asyncio.create_task(_show(write, stream, terms))
    try:
        await asyncio.wait([feeding, showing], return_when=asyncio.FIRST_COMPLETED)
        detached = feeding.done() and feeding.result()
        if not detached and not gone():
            await asyncio.wait([showing])  # input has ended; the output goes on
        return detached
    finally:
        for task in (feeding, showing):
            task.cancel()
        await asyncio.wait([feeding, showing])


async def _feed(read: Callable[[], Awaitable[bytes]], stream: Stream, terms: Terms) -> bool:
    """What the client sends, to its end; True for the detach keys."""
    scanner = EscapeScanner(terms.detach_keys) if terms.tty else None
    try:
        while data := await read():
            if not terms.stdin:
                continue
            detached = False
            if scanner is not None:
                data, detached = scanner.feed(data)
            if data:
                await stream.write(data)
            if detached:
                return True
        if terms.stdin:
            await stream.close_stdin()
    except (InsulaError, OSError) as error:
        log.debug("input: %s", error)
    return False


async def _show(write: Callable[[bytes], Awaitable[None]], stream: Stream, terms: Terms) -> None:
    try:
        while (chunk := await stream.read()) is not None:
            await write(mux.frame(chunk.channel, chunk.data) if terms.framed else chunk.data)
    except ConnectionError:
        pass
    except (InsulaError, OSError) as error:
        log.warning("output: %s", error)


async def say(call: Call, text: str, terms: Terms) -> web.StreamResponse:
    """A hijacked answer that is one message: what dockerd does when an exec cannot start."""
    connection = hijack(call.http, terms.content_type)
    data = (text + "\r\n").encode()
    await connection.write(mux.frame(Channel.STDOUT, data) if terms.framed else data)
    await connection.finish()
    return Hijacked()
