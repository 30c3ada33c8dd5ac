"""gRPC over a connection that was HTTP/1.1: the client calls on `/grpc`, and is called on `/session`.

Async.  HTTP/2 and gRPC are grpclib's; only where the connection comes from is ours.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from grpclib.client import Channel
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.encoding.proto import ProtoCodec
from grpclib.exceptions import GRPCError
from grpclib.protocol import H2Protocol
from grpclib.server import Server

from insula.api.buildkit import wire_pb2 as wire
from insula.api.buildkit.streams import BoundedProtocol

for _name in ("h2", "hpack", "grpclib"):  # each header of each call, else
    logging.getLogger(_name).setLevel(logging.WARNING)

Methods = Mapping[str, tuple[Callable[..., Any], Cardinality, type, type]]
"""By path: the coroutine that answers, how many messages come and go, their kinds."""

_HIGH, _LOW = 1 << 20, 1 << 18


class Details(StatusDetailsCodecBase):
    """An error's details: pairs of BuildKit's type URL and a JSON document."""

    def encode(self, status: Status, message: str | None, details: Any) -> bytes:
        packed = [wire.Any(type_url=url, value=json.dumps(document).encode()) for url, document in details]
        encoded = wire.RpcStatus(code=status.value, message=message or "", details=packed)
        return encoded.SerializeToString()

    def decode(self, status: Status, message: str | None, data: bytes) -> Any:
        return None


class _Service:
    def __init__(self, methods: Methods) -> None:
        self._methods = methods

    def __mapping__(self) -> dict[str, Handler]:
        return {path: Handler(*method) for path, method in self._methods.items()}


class _Known(dict[str, Handler]):
    """Any other method is told of as gRPC wants it: grpclib's own answer has no content type, which Go's
    clients take for no gRPC at all."""

    def get(self, path: str, default: Any = None) -> Any:
        return super().get(path) or Handler(_unknown, Cardinality.STREAM_STREAM, object, object)


async def _unknown(stream: Any) -> None:
    raise GRPCError(Status.UNIMPLEMENTED, "this builder has no such method")


class Served(Server):
    """A gRPC server that is handed its connections."""

    def __init__(self, methods: Methods) -> None:
        super().__init__([_Service(methods)], codec=ProtoCodec(), status_details_codec=Details())
        self._mapping = _Known(self._mapping)

    def protocol(self) -> H2Protocol:
        """Of one connection."""
        plain = self._protocol_factory()
        return BoundedProtocol(plain.handler, plain.config, plain.h2_config)


class Calling(Channel):
    """A gRPC client on one connection, which is not made anew when it ends."""

    def __init__(self) -> None:
        super().__init__(path="session", codec=ProtoCodec(), status_details_codec=Details())
        plain = self._protocol_factory()
        self.protocol: H2Protocol = BoundedProtocol(plain.handler, plain.config, plain.h2_config)
        self._taken = False

    async def _create_connection(self) -> H2Protocol:
        if self._taken or getattr(self.protocol.handler, "connection_lost", False):
            raise GRPCError(Status.UNAVAILABLE, "the client's session has ended")
        self._taken = True
        return self.protocol


class Tunnel(asyncio.Transport):
    """A connection inside a stream of messages (BuildKit's grpchijack): what `protocol` writes is what
    `written` gives."""

    def __init__(self, protocol: H2Protocol) -> None:
        super().__init__()
        self._protocol = protocol
        self._held = bytearray()
        self._arrived = asyncio.Event()
        self._paused = self._closing = False
        protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._held += data
        self._arrived.set()
        if len(self._held) > _HIGH and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def close(self) -> None:
        self._closing = True
        self._arrived.set()

    def is_closing(self) -> bool:
        return self._closing

    async def written(self) -> bytes:
        """What there is to send; b"" when it is closed."""
        while not self._held and not self._closing:
            self._arrived.clear()
            await self._arrived.wait()
        data = bytes(self._held[:_LOW])
        del self._held[:_LOW]
        if self._paused and len(self._held) < _LOW:
            self._paused = False
            self._protocol.resume_writing()
        return data


async def until_closed(closed: asyncio.Future[None], protocol: H2Protocol) -> None:
    """Raises CancelledError with the caller; the connection is closed then."""
    try:
        await asyncio.shield(closed)
    finally:
        protocol.processor.close()
