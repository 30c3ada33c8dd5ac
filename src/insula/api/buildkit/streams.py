"""gRPC's streams below grpclib's calls: messages of a bounded size, and several of them at a time.  Async.

grpclib reads a message of any size that its sender names, and wakes up twice for each; a directory of
thousands of small files is thousands of messages.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from grpclib import client
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.protocol import Buffer, Connection, EventsProcessor, H2Protocol, Stream

MAX_MESSAGE = 16 << 20
"""Bytes of one message, as BuildKit's own server and sessions have it."""

_HEAD = struct.Struct(">?I")
_TAKEN = 64 << 10  # bytes that are looked at before anybody else has a turn


def check_size(size: int) -> None:
    """Raises GRPCError for a message that is too large, in grpc-go's words."""
    if size > MAX_MESSAGE:
        raise GRPCError(
            Status.RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({size} vs. {MAX_MESSAGE})"
        )


class _Held(Buffer):
    async def some(self) -> bytes:
        """What has come, about 64 KiB at most; b"" when no more will."""
        while True:
            if self._eof and self._unacked.empty():
                return b""
            pieces: list[bytes] = []
            size = for_ack = 0
            while size < _TAKEN and (not pieces or not self._unacked.empty()):
                data, _, acked = await self._unacked.get()
                pieces.append(data)
                size += len(data)
                for_ack += acked
            self._ack_callback(for_ack)
            if size:
                return b"".join(pieces)


class _Bounded(Stream):
    def init_stream(self, stream_id: int, connection: Connection) -> None:
        super().init_stream(stream_id, connection)
        self.buffer = _Held(partial(connection.ack, stream_id))

    async def recv_data(self, size: int) -> bytes:
        check_size(size)
        return await super().recv_data(size)


class _BoundedConnection(Connection):
    def create_stream(self, *, stream_id: int | None = None, wrapper: Any = None) -> Stream:
        return _Bounded(self, self._connection, self._transport, stream_id=stream_id, wrapper=wrapper)


class BoundedProtocol(H2Protocol):
    """Whose streams take no message above MAX_MESSAGE."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        plain = self.connection
        self.connection = _BoundedConnection(plain._connection, plain._transport, config=plain._config)
        self.processor = EventsProcessor(self.handler, self.connection)


class Packets:
    """A call of ours whose messages, all of one kind, come and go several at a time."""

    def __init__(self, call: client.Stream[Any, Any], kind: type[Any]) -> None:
        self._call = call
        self._kind = kind
        self._held = bytearray()
        self._ready: deque[Any] = deque()

    async def recv_message(self) -> Any:
        """The next; None at the end.  Raises GRPCError, StreamTerminatedError."""
        while not self._ready:
            await asyncio.sleep(0)
            if not (data := await self._some()):
                if self._held:
                    raise GRPCError(Status.INTERNAL, "the stream ended inside a message")
                return None
            self._parse(data)
        return self._ready.popleft()

    async def _some(self) -> bytes:
        call = self._call
        if not call._recv_initial_metadata_done:
            await call.recv_initial_metadata()
        buffer = call._stream.buffer
        assert isinstance(buffer, _Held)
        with call._wrapper:
            return await buffer.some()

    def _parse(self, data: bytes) -> None:
        held = self._held
        held += data
        at, end = 0, len(held)
        with memoryview(held) as view:
            while end - at >= _HEAD.size:
                compressed, size = _HEAD.unpack_from(view, at)
                if compressed:
                    raise GRPCError(Status.UNIMPLEMENTED, "compressed messages are not read here")
                check_size(size)
                begin = at + _HEAD.size
                if end - begin < size:
                    break
                at = begin + size
                self._ready.append(self._kind.FromString(bytes(view[begin:at])))
        del held[:at]

    async def send_message(self, message: Any, *, end: bool = False) -> None:
        await self.send_messages((message,), end=end)

    async def send_messages(self, messages: Sequence[Any], *, end: bool = False) -> None:
        encoded = [message.SerializeToString() for message in messages]
        call = self._call
        with call._wrapper:
            await call._stream.send_data(
                b"".join(_HEAD.pack(False, len(data)) + data for data in encoded), end_stream=end
            )
            call._end_done = call._end_done or end

    async def end(self) -> None:
        await self._call.end()
