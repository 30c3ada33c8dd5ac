"""Answers that are byte streams (archives, logs): a proper status while nothing has been sent.  Async."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Mapping

from aiohttp import web

from insula.api.call import Call, streaming
from insula.errors import CorruptData, InvalidRequest

log = logging.getLogger(__name__)


@contextlib.contextmanager
def archive_of_client() -> Iterator[None]:
    """What is corrupt here came with the request: the client's mistake, not ours.  Raises InvalidRequest."""
    try:
        yield
    except CorruptData as error:
        raise InvalidRequest(error.message, hint=error.hint) from error


async def stream_bytes(
    call: Call, pieces: AsyncIterator[bytes], content_type: str, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """An error before the first piece is an ordinary error answer; after it the connection is cut, so that
    the client does not take half an archive for a whole one."""
    async with contextlib.AsyncExitStack() as stack:
        if hasattr(pieces, "aclose"):
            stack.push_async_callback(pieces.aclose)
        first = await anext(pieces, b"")
        response = streaming(content_type)
        response.headers.update(headers or {})
        await response.prepare(call.http)
        try:
            await response.write(first)
            async for piece in pieces:
                await response.write(piece)
        except ConnectionError:
            raise
        except Exception as error:
            log.warning("%s %s: cut off: %s", call.http.method, call.http.path, error)
            if call.http.transport is not None:
                call.http.transport.abort()
            raise ConnectionResetError("cut off") from error
    return response
