"""From a request to its handler and back: version, routing, headers, errors.  Async.

Not for what a page does (`routes/`) and not for sockets (`server`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, PayloadEncodingError

from insula.api.browsers import refuse_web_pages
from insula.api.call import COMMON_HEADERS, Call
from insula.api.hijack import Hijacked
from insula.api.routes.table import ROUTES
from insula.api.routing import Router
from insula.api.versions import check_version, split_version
from insula.api.wire.codec import json_bytes
from insula.engine.engine import Engine
from insula.errors import InsulaError, NotFound
from insula.model.paths import clean_path

log = logging.getLogger(__name__)


class Application:
    """Callable: one request in, one response out.  Never raises but for cancellation and lost connections."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._router = Router(ROUTES)
        self._unfinished: set[asyncio.Task[web.StreamResponse]] = set()

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            response = await self._answer(request)
        except InsulaError as error:
            response = error_response(error.status, str(error))
        except ConnectionError:
            if request.transport is not None and not request.transport.is_closing():
                raise
            return web.Response(status=499)  # to nobody: the client has left, which is no error of ours
        except asyncio.CancelledError:
            raise
        except (HttpProcessingError, web.RequestPayloadError, PayloadEncodingError) as error:
            response = error_response(400, f"the request's body is malformed: {error}")
            response.force_close()
        except web.HTTPException as error:
            response = error_response(error.status, error.reason)
        except Exception as error:
            log.exception("%s %s", request.method, request.rel_url)
            response = error_response(500, f"internal error: {type(error).__name__}: {error}")
        if response.prepared:
            return response
        if _has_begun(request) and not isinstance(response, Hijacked):
            # too late for a status: the client must not take half an answer for a whole one
            log.warning("%s %s: cut off: %s", request.method, request.path, response.reason)
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("cut off")
        response.headers.update(COMMON_HEADERS)
        return response

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if _is_tcp(request):
            refuse_web_pages(request.headers)
        word, path = split_version(request.rel_url.path)
        version = check_version(word)
        found = self._router.find(request.method, path)
        if found is None:
            if request.method == "OPTIONS":
                return web.Response()
            if (clean := _clean_url(request.rel_url.path)) != request.rel_url.path:
                where = request.rel_url.with_path(clean, keep_query=True)
                return web.Response(status=301, headers={"Location": str(where)})
            raise NotFound("page not found")
        route, names = found
        call = Call(self._engine, request, version, names)
        if not route.archive:
            await call.read_form()
        if not route.completes:
            return await route.handler(call)
        return await self._complete(route.handler(call))

    async def _complete(self, handling: Awaitable[web.StreamResponse]) -> web.StreamResponse:
        """To the end, also when the client goes away: half an operation helps nobody."""

        async def run() -> web.StreamResponse:
            return await handling

        task = asyncio.create_task(run())
        self._unfinished.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[web.StreamResponse]) -> None:
        self._unfinished.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("ended with %r", error)

    async def finish(self) -> None:
        """Wait for operations whose client has gone."""
        if self._unfinished:
            await asyncio.wait(self._unfinished, timeout=10)


def _has_begun(request: web.BaseRequest) -> bool:
    """Part of an answer has been sent, or the connection has been taken over."""
    transport = request.transport
    return request.writer.output_size > 0 or (
        transport is not None and transport.get_protocol() is not request.protocol
    )


def _is_tcp(request: web.BaseRequest) -> bool:
    """A browser knows no other sockets."""
    transport = request.transport
    return transport is not None and isinstance(transport.get_extra_info("sockname"), tuple)


def _clean_url(path: str) -> str:
    """As Go's router redirects: clients ask for `/containers//name/json`.  A slash at the end stays."""
    clean = clean_path(path)
    return clean + "/" if path.endswith("/") and clean != "/" else clean


def error_response(status: int, message: str) -> web.Response:
    """Docker's error document; 304 has no body."""
    if status == 304:
        return web.Response(status=304)
    return web.Response(status=status, body=json_bytes({"message": message}), content_type="application/json")
