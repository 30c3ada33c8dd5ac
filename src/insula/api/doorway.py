"""The HTTP protocol of one connection, able to stop being HTTP after an attach or exec request.  Async.

aiohttp parses whatever follows a request as the next one.  What follows an attach is the workload's
stdin, and may arrive in the same packet.  So a request that can be hijacked is recognised here, before
the parser, and the bytes behind it are held back until `take_over` (or until a plain answer, when they
are HTTP after all).  Only the end of a request that nothing is being answered before is looked at.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

_PAGE = re.compile(rb"POST (?:/v[0-9.]+)?/(?:containers/[^/ ]+/attach|exec/[^/ ]+/start)[? ]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,10})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)
_MOST_HEAD = 32 * 1024
_MOST_BODY = 4 * 1024 * 1024
_MOST_HELD = 256 * 1024


class Doorway(RequestHandler):
    """aiohttp's handler of one connection, with the look ahead described above."""

    __slots__ = ("_held", "_holding", "_opening")

    def __init__(self, manager: web.Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, **options)
        self._opening = b""
        self._holding = False
        self._held = bytearray()

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
            super().data_received(data)
            return
        end = _end_of_hijacking_request(data)
        if end is None:
            self._opening = data
        elif end <= 0:
            super().data_received(data)
        else:
            self._holding = True
            self._held += data[end:]
            super().data_received(data[:end])

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
