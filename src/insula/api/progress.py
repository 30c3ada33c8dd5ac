"""Answers that tell how work goes on: JSON lines, errors inside once the first line is out.  Async."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from insula.api.call import Call, streaming
from insula.api.wire.codec import json_bytes
from insula.errors import BuildStepFailed, InsulaError

log = logging.getLogger(__name__)

_MOST_LINES = 256
_PAUSE_S = 0.1  # between two lines of one layer that say the same but for the number


class Teller:
    """A Progress whose lines wait for the client.  Never blocks; what only moves a bar is thinned out."""

    def __init__(self, held_lines: int) -> None:
        self._lines: list[dict[str, Any]] = []
        self._held = held_lines
        self.has_begun = False
        self._last: dict[str, tuple[str, float]] = {}
        self.ready = asyncio.Event()
        self._taken = asyncio.Event()

    def __call__(self, status: str, *, id: str = "", current: int = 0, total: int = 0) -> None:
        now = time.monotonic()
        if total and current < total:
            before, when = self._last.get(id, ("", 0.0))
            if before == status and now - when < _PAUSE_S:
                return
            self._last[id] = (status, now)
        line: dict[str, Any] = {"status": status}
        if id or current or total:
            numbers = {"current": current, "total": total}
            line["progressDetail"] = {k: v for k, v in numbers.items() if v}
        if id:
            line["id"] = id
        self.line(line)

    def line(self, document: dict[str, Any]) -> None:
        self._lines.append(document)
        if len(self._lines) > self._held:
            self._held = 0
            self.has_begun = True
            self.ready.set()

    async def room(self) -> None:
        """Until the client has taken most of what was said: for work that says much."""
        while len(self._lines) > _MOST_LINES:
            self._taken.clear()
            await self._taken.wait()

    def take(self) -> bytes:
        self.ready.clear()
        taken, self._lines = self._lines, []
        self._taken.set()
        return b"".join(json_bytes(line) for line in taken)


async def stream_progress(
    call: Call,
    work: Callable[[Teller], Awaitable[object]],
    *,
    held_lines: int = 0,
    at_once: bool = False,
    to_the_end: bool = False,
) -> web.StreamResponse:
    """Run `work` and send what it tells.  An error before the first line is an ordinary error answer; the
    first `held_lines` lines do not count for that; with `at_once` no error is.  The work is
    cancelled when the client goes away, or goes on `to_the_end`, on a route that `completes`."""
    teller = Teller(held_lines)
    task = asyncio.ensure_future(work(teller))
    task.add_done_callback(lambda _: teller.ready.set())
    response = None
    try:
        while True:
            await teller.ready.wait()
            done = task.done()
            if done and response is None and not at_once and not teller.has_begun:
                task.result()  # raises what went wrong, while a status can still say so
            if response is None:
                response = streaming("application/json")
                await response.prepare(call.http)
            if lines := teller.take():
                await response.write(lines)
            if done:
                break
    finally:
        if not task.done():
            if not to_the_end:
                task.cancel()
            await asyncio.wait([task])
    if (error := task.exception()) is not None:
        if not isinstance(error, InsulaError):
            log.error("%s %s", call.http.method, call.http.rel_url, exc_info=error)
        detail = {"code": error.code} if isinstance(error, BuildStepFailed) else {}
        await response.write(
            json_bytes({"errorDetail": {**detail, "message": str(error)}, "error": str(error)})
        )
    return response
