"""The HTTP protocol of one connection, able to stop being HTTP after a request that asks for it.  Async.

aiohttp parses whatever follows a request as the next one.  What follows an attach is the workload's
stdin, what follows BuildKit's two pages is HTTP/2, and it may arrive in the same packet.  So a request that
can be hijacked is recognised here, before the parser, and the bytes behind it are held back until `take_over`
(or until a plain answer, when they are HTTP after all).  Only the end of a request that nothing is being
answered before is looked at.
"""

from __future__ import annotations

import asyncio
import logging
import re
import select
import socket
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

log = logging.getLogger(__name__)

_PAGE = re.compile(rb"POST (?:/v[0-9.]+)?/(?:containers/[^/ ]+/attach|exec/[^/ ]+/start|session|grpc)[? ]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,10})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)
_MOST_HEAD = 32 * 1024
_MOST_BODY = 4 * 1024 * 1024
_MOST_HELD = 256 * 1024
_LOOK_S = 0.5


class Doorway(RequestHandler):
    """aiohttp's handler of one connection, with the look ahead described above."""

    __slots__ = ("_body", "_held", "_holding", "_opening")

    def __init__(self, manager: web.Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, **options)
        self._opening = b""
        self._holding = False
        self._held = bytearray()
        self._body: StreamReader | None = None  # of the latest request

    def data_received(self, data: bytes) -> None:
        if self._holding:
            self._held += data
            if len(self._held) >= _MOST_HELD and self.transport is not None:
                self.transport.pause_reading()
            return
        if self._opening:
            data = self._opening + data
            self._opening = b""
        elif self._messages or self._current_request is not None or not data.startswith(b"POST "):
            self._parse(data)
            return
        end = _end_of_hijacking_request(data)
        if end is None:
            self._opening = data
        elif end <= 0:
            self._parse(data)
        else:
            self._holding = True
            self._held += data[end:]
            self._parse(data[:end])

    def _parse(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages:
            self._body = self._messages[-1][1]

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether to go on: a client may have said everything and still listen (`socat`, `nc -N`, `docker
        system dial-stdio`), which aiohttp would take for gone."""
        idle = self._waiter is not None and not self._waiter.done()
        if self._holding or idle or self._body is None or not self._body.is_eof() or self._is_gone():
            return False
        self.close()  # once this is answered
        self._look_again()
        return True

    def _is_gone(self) -> bool:
        """Only a unix socket tells whether its other end is closed or just silent from now on."""
        sock = self.transport.get_extra_info("socket") if self.transport is not None else None
        if sock is None or sock.family != socket.AF_UNIX or sock.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(sock.fileno(), 0)
        return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))

    def _look_again(self) -> None:
        """Nothing more is read, so nobody would tell when the client goes."""
        if self.transport is None:
            return
        if self._is_gone():
            self.transport.close()
            return
        self._loop.call_later(_LOOK_S, self._look_again)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """What is no HTTP is no error of ours, and whoever reaches the port can send it: a line, no more."""
        error = kw.get("exc_info")
        if isinstance(error, HttpProcessingError):
            log.info("not HTTP: %s", " ".join(error.message.split())[:200])
        else:
            super().log_exception(*args, **kw)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        answer = await super().finish_response(request, resp, start_time)
        if self._holding and self._parser is not None:
            held = self.take_held()
            if self.transport is not None:
                self.transport.resume_reading()
            if held:
                self.data_received(held)
        return answer

    def take_held(self) -> bytes:
        """What came after the request; from now on nothing is held back."""
        held = bytes(self._held)
        self._held.clear()
        self._holding = False
        return held


def _end_of_hijacking_request(data: bytes) -> int | None:
    """Offset behind the request's body; 0 when it is not such a request, None when that is not known yet."""
    head_end = data.find(b"\r\n\r\n")
    if head_end < 0:
        line_is_known = b"\r\n" in data or len(data) > _MOST_HEAD
        return 0 if (line_is_known and not _PAGE.match(data)) or len(data) > _MOST_HEAD else None
    if not _PAGE.match(data):
        return 0
    head, body = data[: head_end + 2], head_end + 4
    if _CHUNKED.search(head):
        if data[body : body + 5] == b"0\r\n\r\n":
            return body + 5
        last = data.find(b"\r\n0\r\n\r\n", body)
        if last < 0:
            return None if len(data) - body <= _MOST_BODY else 0
        return last + 7
    length = _LENGTH.search(head)
    end = body + (int(length[1]) if length else 0)
    if end - body > _MOST_BODY:
        return 0
    return end if len(data) >= end else None


class DoorServer(web.Server):
    """Makes a Doorway for each connection."""

    def __call__(self) -> RequestHandler:
        return Doorway(self, loop=self._loop, **self._kwargs)
