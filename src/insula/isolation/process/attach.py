"""Streams: a client of conmon's attach socket, and the pipes or terminal of an exec.  Async."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterator

from insula.model.stream import Channel, Chunk

_PACKET = 8192 + 1  # conmon: STDIO_BUF_SIZE, and the byte that names the pipe
_STDIN_PACKET = 32 * 1024  # conmon: CONN_SOCK_BUF_SIZE; it would cut off what is longer
_ENOUGH = 64 * 1024
_STDERR_PIPE = 3  # conmon: STDOUT_PIPE is 2
_GONE = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError)


class ConsoleStream:
    """One client of conmon.  conmon waits for slow clients: back-pressure reaches the workload."""

    def __init__(self, connection: socket.socket, *, takes_input: bool) -> None:
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._takes_input = takes_input
        self._kept: Chunk | None = None
        self._closed = False

    @classmethod
    def connect(cls, directory: str, *, takes_input: bool) -> ConsoleStream:
        """When conmon has ended already: a stream at its end."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        stream = cls(connection, takes_input=takes_input)
        try:
            with _short_name(directory) as name:
                connection.connect(f"{name}/attach")
        except OSError:
            stream._closed, stream._takes_input = True, False
            connection.close()
        return stream

    def __del__(self) -> None:
        self._socket.close()  # of a daemon that stopped with clients attached: their workload goes on

    async def read(self) -> Chunk | None:
        if self._closed:
            return None
        first = self._kept or _parse(await self._receive())
        self._kept = None
        if first is None:
            return None
        pieces, size = [first.data], len(first.data)
        while size < _ENOUGH:  # what is there already goes in one piece
            try:
                packet = self._socket.recv(_PACKET)
            except (BlockingIOError, *_GONE, ValueError, OSError):
                break
            further = _parse(packet)
            if further is None:
                break
            if further.channel is not first.channel:
                self._kept = further
                break
            pieces.append(further.data)
            size += len(further.data)
        if size >= _ENOUGH:
            await asyncio.sleep(0)
        return Chunk(first.channel, b"".join(pieces))

    async def _receive(self) -> bytes:
        try:
            return await self._loop.sock_recv(self._socket, _PACKET)
        except (*_GONE, OSError):
            return b""

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and self._takes_input:
            try:
                await self._loop.sock_sendall(self._socket, view[:_STDIN_PACKET])
            except OSError:
                self._takes_input = False
            view = view[_STDIN_PACKET:]

    async def close_stdin(self) -> None:
        if self._takes_input:
            self._takes_input = False
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._takes_input = False
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes a reader
            await asyncio.sleep(0)
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()


def settle(future: asyncio.Future[None]) -> None:
    """For callbacks of the loop: done, once."""
    if not future.done():
        future.set_result(None)


def _parse(packet: bytes) -> Chunk | None:
    if not packet:
        return None
    return Chunk(Channel.STDERR if packet[0] == _STDERR_PIPE else Channel.STDOUT, packet[1:])


@contextlib.contextmanager
def _short_name(directory: str) -> Iterator[str]:
    """A socket's path may have 107 bytes; an instance's directory alone has 90."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


class DescriptorStream:
    """Pipes or a terminal that this process holds the other end of.  -1 for what there is none of.

    Ends after `finish`, when no more is there: a background process that keeps the pipe open does not keep
    the client.
    """

    def __init__(self, *, stdin: int, stdout: int, stderr: int, tty: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self._stdin = stdin
        self._sources = {fd: c for fd, c in ((stdout, Channel.STDOUT), (stderr, Channel.STDERR)) if fd >= 0}
        self._tty = tty
        self._finished = False
        self._closed = False
        self._last_words: Chunk | None = None
        self._wake: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        for fd in {stdin, *self._sources} - {-1}:
            os.set_blocking(fd, False)

    async def read(self) -> Chunk | None:
        while True:
            for fd, channel in list(self._sources.items()):
                data = self._take(fd)
                if data:
                    return Chunk(channel, data)
            if self._finished or self._closed:
                words, self._last_words = self._last_words, None
                return None if self._closed else words
            await self._readable()

    def _take(self, fd: int) -> bytes | None:
        """None: nothing now.  A source that has ended is dropped."""
        try:
            data = os.read(fd, _ENOUGH)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EIO:  # a terminal's end
                raise
            data = b""
        if not data:
            self._drop(fd)
        return data

    def _drop(self, fd: int) -> None:
        del self._sources[fd]
        if self._tty and fd == self._stdin:
            self._stdin = -1
            self._loop.remove_writer(fd)
            self._stop_writing()
        os.close(fd)

    async def _readable(self) -> None:
        self._wake = self._loop.create_future()
        for fd in self._sources:
            self._loop.add_reader(fd, self._woken)
        try:
            await self._wake
        finally:
            for fd in self._sources:
                self._loop.remove_reader(fd)
            self._wake = None

    def _woken(self) -> None:
        if self._wake is not None:
            settle(self._wake)

    def finish(self, last_words: Chunk | None = None) -> None:
        """The program has ended: what is still in the pipes is the rest."""
        self._finished = True
        self._last_words = last_words
        self._woken()
        self._stop_writing()
        if self._closed:
            self._release()

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and self._stdin >= 0 and not self._finished:
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                await self._writable(self._stdin)
            except OSError:
                await self.close_stdin()

    async def _writable(self, fd: int) -> None:
        self._room = self._loop.create_future()
        self._loop.add_writer(fd, settle, self._room)
        try:
            await self._room
        finally:
            if self._stdin == fd:
                self._loop.remove_writer(fd)
            self._room = None

    def _stop_writing(self) -> None:
        if self._room is not None:
            settle(self._room)

    async def close_stdin(self) -> None:
        """A terminal has no half; there the end of input is a ^D that somebody types."""
        if self._stdin >= 0 and not self._tty:
            fd, self._stdin = self._stdin, -1
            self._loop.remove_writer(fd)
            os.close(fd)
            self._stop_writing()

    def resize(self, rows: int, cols: int) -> None:
        if self._tty and self._sources:
            fcntl.ioctl(next(iter(self._sources)), termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    async def close(self) -> None:
        """The program goes on: what it still writes is read and thrown away."""
        if self._closed:
            return
        self._closed = True
        await self.close_stdin()
        self._woken()
        await asyncio.sleep(0)
        if self._finished:
            self._release()
            return
        for fd in self._sources:
            self._loop.add_reader(fd, self._discard, fd)

    def _discard(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        if fd in self._sources and self._take(fd) != b"":
            self._loop.add_reader(fd, self._discard, fd)

    def _release(self) -> None:
        for fd in list(self._sources):
            self._loop.remove_reader(fd)
            self._drop(fd)
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
