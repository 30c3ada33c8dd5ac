"""Taking a connection over from HTTP: a byte stream both ways, with half-close and back-pressure.  Async.

The transport keeps its place in the server: losing the connection is passed on to aiohttp's handler,
which cancels the coroutine that answers, so nothing outlives its client.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import select
import termios
from collections import deque
from socket import AF_UNIX

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from insula.api.doorway import Doorway

_HIGH = 256 * 1024
_LOW = 64 * 1024
_LINGER_S = 2.0
_HEAD_S = 2.0  # on a busy machine a client may be kept from the processor for tenths of a second
_HEAD_LONGEST_S = 0.02


class HijackedConnection(asyncio.Protocol):
    """Made by `hijack`.  One reader and one writer at a time."""

    def __init__(self, former: RequestHandler, transport: asyncio.Transport, held: bytes) -> None:
        self._former = former
        self._transport = transport
        self._pieces: deque[bytes] = deque([held] if held else [])
        self._size = len(held)
        self._ended = False
        self._lost = False
        self._reading_paused = False
        self._arrived: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._epoll: select.epoll | None = None
        self._head_is_read = False

    # called by the transport

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _HIGH and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """The client has closed its half; ours stays open for output."""
        self._ended = True
        self._wake()
        self._start_hangup_watch()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = self._lost = True
        self._writable.set()
        self._wake()
        self._stop_hangup_watch()
        self._former.connection_lost(exc)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # for the handler

    async def read(self) -> bytes:
        """What the client sent; b"" at its end."""
        while not self._pieces and not self._ended:
            self._arrived = asyncio.get_running_loop().create_future()
            try:
                await self._arrived
            finally:
                self._arrived = None
        if not self._pieces:
            return b""
        piece = self._pieces.popleft()
        self._size -= len(piece)
        if self._reading_paused and self._size < _LOW:
            self._reading_paused = False
            if not self._lost:
                self._transport.resume_reading()
        return piece

    async def write(self, data: bytes) -> None:
        """Waits while the client does not read.  Raises ConnectionResetError when it has gone."""
        if not self._head_is_read:
            await self._until_head_is_read()
        if self._lost:
            raise ConnectionResetError("the client has gone")
        self._transport.write(data)
        if not self._writable.is_set():
            await self._writable.wait()

    async def _until_head_is_read(self) -> None:
        """docker-py reads our head through a buffer and the output past it, from the socket itself: output
        that came in one piece with the head is lost to it.  The kernel tells when a local client has read
        all that was sent; one that does not read is not waited for without end."""
        self._head_is_read = True
        socket = self._transport.get_extra_info("socket")
        if socket is None or socket.family != AF_UNIX:
            return
        waited_s, pause_s = 0.0, 0.001
        while waited_s < _HEAD_S and not self._lost:
            if fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4)) == bytes(4):
                return
            await asyncio.sleep(pause_s)
            waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, _HEAD_LONGEST_S)

    async def finish(self) -> None:
        """End of output.  What the client still sends is read and dropped for a moment: closing with
        unread input would reset the connection and lose the output's end."""
        self._stop_hangup_watch()
        if not self._lost:
            with contextlib.suppress(OSError):
                self._transport.write_eof()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    while await self.read():
                        pass
        self._transport.close()

    def abort(self) -> None:
        self._stop_hangup_watch()
        self._transport.abort()

    # a client that half-closed and then went away

    def _start_hangup_watch(self) -> None:
        """asyncio no longer reads after end-of-file, so a client that vanishes then is noticed only by the
        next write, which a silent workload never makes.  epoll tells: HUP is both halves closed."""
        socket = self._transport.get_extra_info("socket")
        if socket is None or self._lost or socket.fileno() < 0:
            return
        self._epoll = select.epoll()
        self._epoll.register(socket.fileno(), select.EPOLLET)
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._hung_up)

    def _hung_up(self) -> None:
        if self._epoll is not None and any(
            what & (select.EPOLLHUP | select.EPOLLERR) for _, what in self._epoll.poll(0)
        ):
            self._stop_hangup_watch()
            self._transport.abort()

    def _stop_hangup_watch(self) -> None:
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)


class Hijacked(web.StreamResponse):
    """What a handler returns after a hijack: everything has been sent already."""

    def __init__(self) -> None:
        super().__init__()
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


def _take(request: web.BaseRequest) -> tuple[RequestHandler, asyncio.Transport, bytes]:
    """The connection, without its protocol, and what has arrived after the request."""
    former = request.protocol
    transport = former.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    held = former.take_held() if isinstance(former, Doorway) else b""
    former.keep_alive(False)
    return former, transport, held


class _Successor(asyncio.Protocol):
    """Another protocol's calls, and aiohttp is told of the end."""

    def __init__(self, former: RequestHandler, protocol: asyncio.Protocol) -> None:
        self._former = former
        self._protocol = protocol
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)
        if not self.closed.done():
            self.closed.set_result(None)
        self._former.connection_lost(exc)


def upgrade(request: web.BaseRequest, word: str, protocol: asyncio.Protocol) -> asyncio.Future[None]:
    """Answer 101 and give the connection to `protocol`.  What it returns is done when the connection has
    ended.  Raises ConnectionResetError when the client has gone."""
    former, transport, held = _take(request)
    successor = _Successor(former, protocol)
    transport.set_protocol(successor)
    transport.write(f"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: {word}\r\n\r\n".encode())
    protocol.connection_made(transport)
    if held:
        protocol.data_received(held)
    transport.resume_reading()
    return successor.closed


def hijack(request: web.BaseRequest, content_type: str) -> HijackedConnection:
    """Answer (101 when the client asked to upgrade, else 200) and take the connection.  The request's
    body must have been read.  Raises ConnectionResetError when the client has gone."""
    former, transport, held = _take(request)
    connection = HijackedConnection(former, transport, held)
    transport.set_protocol(connection)
    if "Upgrade" in request.headers:
        head = f"HTTP/1.1 101 UPGRADED\r\nContent-Type: {content_type}\r\n"
        head += "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    else:
        head = "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
    transport.write(head.encode())
    transport.resume_reading()
    return connection
