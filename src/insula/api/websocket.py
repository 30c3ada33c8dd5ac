"""Between a websocket and the stdio of a workload (`attach/ws`).  Async.

As dockerd's: every message is raw bytes, output with no frames of its own, stdout and stderr together.
"""

from __future__ import annotations

import dataclasses

from aiohttp import WSMsgType, web

from insula.api.call import Call
from insula.api.pump import Terms, converse
from insula.model.stream import Stream

_MOST_MESSAGE = 1024 * 1024


async def pump_websocket(call: Call, stream: Stream, terms: Terms) -> tuple[web.StreamResponse, bool]:
    """Until the output ends, the client goes, or the detach keys come: the response, and whether the client
    detached.  Closes the stream in every case.  Raises web.HTTPBadRequest for what is no handshake."""
    try:
        socket = web.WebSocketResponse(max_msg_size=_MOST_MESSAGE, autoclose=True, compress=False)
        await socket.prepare(call.http)

        async def read() -> bytes:
            async for message in socket:
                if message.type in (WSMsgType.TEXT, WSMsgType.BINARY) and message.data:
                    return message.data.encode() if isinstance(message.data, str) else bytes(message.data)
            return b""

        raw = dataclasses.replace(terms, framed=False)
        detached = await converse(read, socket.send_bytes, stream, raw, gone=lambda: socket.closed)
    finally:
        await stream.close()
    await socket.close()
    return socket, detached
