"""Between a hijacked connection and the stdio of a workload or an exec.  Async."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from aiohttp import web

from insula.api import mux
from insula.api.call import Call
from insula.api.escape import EscapeScanner
from insula.api.hijack import Hijacked, HijackedConnection, hijack
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
        detached = asyncio.Event()
        feeding = asyncio.create_task(_feed(connection, stream, terms, detached))
        showing = asyncio.create_task(_show(connection, stream, terms))
        leaving = asyncio.create_task(detached.wait())
        try:
            await asyncio.wait([showing, leaving], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            connection.abort()
            raise
        finally:
            for task in (feeding, showing, leaving):
                task.cancel()
            await asyncio.wait([feeding, showing, leaving])
    finally:
        await stream.close()
    await connection.finish()
    return Hijacked(), detached.is_set()


async def _feed(
    connection: HijackedConnection, stream: Stream, terms: Terms, detached: asyncio.Event
) -> None:
    scanner = EscapeScanner(terms.detach_keys) if terms.tty else None
    try:
        while data := await connection.read():
            if not terms.stdin:
                continue
            gone = False
            if scanner is not None:
                data, gone = scanner.feed(data)
            if data:
                await stream.write(data)
            if gone:
                detached.set()
                return
        if terms.stdin:
            await stream.close_stdin()
    except (InsulaError, OSError) as error:
        log.debug("input: %s", error)


async def _show(connection: HijackedConnection, stream: Stream, terms: Terms) -> None:
    try:
        while (chunk := await stream.read()) is not None:
            await connection.write(mux.frame(chunk.channel, chunk.data) if terms.framed else chunk.data)
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
