"""Between a websocket and the stdio of a workload (`attach/ws`).  Async.

As dockerd's: every message is raw bytes, output with no frames of its own, stdout and stderr together.
"""

from __future__ import annotations

import asyncio
import logging

from aiohttp import WSMsgType, web

from insula.api.call import Call
from insula.api.escape import EscapeScanner
from insula.api.pump import Terms
from insula.errors import InsulaError
from insula.model.stream import Stream

log = logging.getLogger(__name__)

_MOST_MESSAGE = 1024 * 1024


async def pump_websocket(call: Call, stream: Stream, terms: Terms) -> tuple[web.StreamResponse, bool]:
    """Until the output ends, the client goes, or the detach keys come: the response, and whether the client
    detached.  Closes the stream in every case.  Raises web.HTTPBadRequest for what is no handshake."""
    try:
        socket = web.WebSocketResponse(max_msg_size=_MOST_MESSAGE, autoclose=True, compress=False)
        await socket.prepare(call.http)
        feeding = asyncio.create_task(_feed(socket, stream, terms))
        showing = asyncio.create_task(_show(socket, stream))
        try:
            await asyncio.wait([feeding, showing], return_when=asyncio.FIRST_COMPLETED)
            detached = feeding.done() and not feeding.cancelled() and feeding.result()
            if not socket.closed and not detached and not showing.done():
                await showing  # input has ended; the output goes on
        finally:
            for task in (feeding, showing):
                task.cancel()
            await asyncio.wait([feeding, showing])
    finally:
        await stream.close()
    await socket.close()
    return socket, detached


async def _feed(socket: web.WebSocketResponse, stream: Stream, terms: Terms) -> bool:
    """What the client sends; True for the detach keys.  Ends with the connection."""
    scanner = EscapeScanner(terms.detach_keys) if terms.tty else None
    try:
        async for message in socket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY) or not terms.stdin:
                continue
            data = message.data.encode() if isinstance(message.data, str) else bytes(message.data)
            gone = False
            if scanner is not None:
                data, gone = scanner.feed(data)
            if data:
                await stream.write(data)
            if gone:
                return True
        if terms.stdin:
            await stream.close_stdin()
    except (InsulaError, OSError) as error:
        log.debug("input: %s", error)
    return False


async def _show(socket: web.WebSocketResponse, stream: Stream) -> None:
    try:
        while (chunk := await stream.read()) is not None:
            await socket.send_bytes(chunk.data)
    except ConnectionError:
        pass
    except (InsulaError, OSError) as error:
        log.warning("output: %s", error)
