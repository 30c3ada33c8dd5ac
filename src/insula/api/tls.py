"""TLS under the API's connections: what the HTTP protocol has for a transport there.  Async.

asyncio's own TLS transport takes the client's close_notify for the end of the connection, so an attach would
lose its output when stdin ends.  Here a close_notify is end-of-file, and the connection's end is TCP's.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable
from typing import Any

from insula.tls import TlsStream, is_tls

log = logging.getLogger(__name__)

_HANDSHAKE_S = 60.0
# Go's answer, which docker's clients show
_PLAIN_HTTP = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
    b"Client sent an HTTP request to an HTTPS server.\n"
)


class TlsDoor:
    """Makes the protocol of each TCP connection; `make_protocol` makes that of what is said in it."""

    def __init__(self, make_protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext) -> None:
        self._make_protocol = make_protocol
        self._context = context
        self._opening: set[_Tunnel] = set()

    def __call__(self) -> asyncio.Protocol:
        tunnel = _Tunnel(TlsStream(self._context), self._make_protocol, self._opening.discard)
        self._opening.add(tunnel)
        return tunnel

    def close(self) -> None:
        """Drop the connections that have not shaken hands yet; nobody else knows of them."""
        for tunnel in tuple(self._opening):
            tunnel.drop()


class _Tunnel(asyncio.Protocol):
    """Of the TCP connection."""

    def __init__(
        self,
        stream: TlsStream,
        make_protocol: Callable[[], asyncio.Protocol],
        opened: Callable[[_Tunnel], None],
    ) -> None:
        self._stream = stream
        self._make_protocol = make_protocol
        self._opened = opened
        self._inner: _TlsTransport | None = None
        self._outer: asyncio.Transport | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._spoken = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._outer = transport
        self._limit = asyncio.get_running_loop().call_later(_HANDSHAKE_S, self.drop)

    def data_received(self, data: bytes) -> None:
        assert self._outer is not None
        if not self._spoken and not is_tls(data):
            self._outer.write(_PLAIN_HTTP)
            self._outer.close()
            return
        self._spoken = True
        had_ended = self._stream.ended
        try:
            plain, reply = self._stream.feed(data)
        except ssl.SSLError as error:
            log.info("TLS from %s: %s", self._outer.get_extra_info("peername"), error)
            self._outer.write(self._stream.farewell())
            self._outer.close()
            return
        if reply and not self._outer.is_closing():
            self._outer.write(reply)
        if self._inner is None and self._stream.ready:
            self._open()
        if self._inner is None or self._inner.is_closing():
            return
        if plain:
            self._inner.protocol.data_received(plain)
        if self._stream.ended and not had_ended and not self._inner.protocol.eof_received():
            self._inner.close()

    def _open(self) -> None:
        assert self._outer is not None
        self._stop_waiting()
        self._inner = _TlsTransport(self._outer, self._stream, self._make_protocol())
        self._inner.protocol.connection_made(self._inner)

    def eof_received(self) -> bool:
        """Without a good-bye it is end-of-file, as in Go; after one, both halves are closed."""
        if self._inner is None:
            return False
        if self._stream.ended:
            self._inner.abort()
            return False
        self._stream.ended = True
        return bool(self._inner.protocol.eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._inner is not None:
            self._inner.protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.protocol.resume_writing()

    def drop(self) -> None:
        if self._outer is not None:
            self._outer.abort()

    def _stop_waiting(self) -> None:
        self._opened(self)
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None


class _TlsTransport(asyncio.Transport):
    """What the HTTP protocol, and later a hijacked stream, writes to."""

    def __init__(self, outer: asyncio.Transport, stream: TlsStream, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._outer = outer
        self._stream = stream
        self.protocol = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Also `socket`, of TCP: for its options, and to see that the client has hung up."""
        return self._outer.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def is_closing(self) -> bool:
        return self._outer.is_closing()

    def close(self) -> None:
        if self._outer.is_closing():
            return
        self.write_eof()
        self._outer.close()

    def abort(self) -> None:
        self._outer.abort()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and not self._stream.closed and not self._outer.is_closing():
            self._outer.write(self._stream.encrypt(bytes(data)))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if not self._outer.is_closing():
            self._outer.write(self._stream.close_write())

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self._outer.pause_reading()

    def resume_reading(self) -> None:
        self._outer.resume_reading()

    def is_reading(self) -> bool:
        return self._outer.is_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._outer.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._outer.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._outer.get_write_buffer_limits()
