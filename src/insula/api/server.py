"""The API on its sockets.  Async.

async with serve(engine, settings):
    …
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from insula.api.app import Application
from insula.api.doorway import DoorServer
from insula.api.listen import inherited_sockets, open_listeners, unlink_path
from insula.config import Settings
from insula.engine.engine import Engine

if TYPE_CHECKING:
    from insula.api.tls import TlsDoor

log = logging.getLogger(__name__)

_MOST_HEADER = 1 << 20  # bytes, as Go's http.Server takes them
_GRACE_S = 0.2  # for answers; operations under way are waited for by `Application.finish`


class Server:
    def __init__(self, engine: Engine) -> None:
        self.app = Application(engine)
        self._http = DoorServer(
            self.app,
            handler_cancellation=True,  # who waits for a client that has gone stops
            access_log=None,
            keepalive_timeout=75.0,
            tcp_keepalive=True,
            auto_decompress=False,  # archives go on as they came
            # credentials for many registries come in a header, names of many images in a query
            max_line_size=_MOST_HEADER,
            max_field_size=_MOST_HEADER,
        )
        self._servers: list[asyncio.Server] = []
        self._listeners: list[socket.socket] = []
        self._unlink = True
        self._tls: TlsDoor | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, as clients write it."""
        return tuple(_address(listener) for listener in self._listeners)

    async def start(self, settings: Settings) -> None:
        """Raises what `open_listeners` and `server_context` raise.  Answers requests when it returns."""
        loop = asyncio.get_running_loop()
        if settings.tls or settings.tlsverify:
            from insula.api.tls import TlsDoor
            from insula.tls import server_context

            ca = settings.tlscacert if settings.tlsverify else None
            context = server_context(cert=settings.tlscert, key=settings.tlskey, ca=ca)
            self._tls = TlsDoor(self._http, context)
        inherited = inherited_sockets()
        self._unlink = not inherited  # systemd's paths stay: it goes on listening for us
        self._listeners = inherited or open_listeners(settings.host)
        for listener in self._listeners:
            if listener.family == socket.AF_UNIX:
                started = await loop.create_unix_server(self._http, sock=listener, backlog=1024)
            else:
                started = await loop.create_server(self._tls or self._http, sock=listener, backlog=1024)
            self._servers.append(started)
        log.info("API on %s", ", ".join(self.addresses))
        if not settings.tlsverify:
            for address in (one for one in self.addresses if one.startswith("tcp://")):
                log.warning("%s: whoever reaches it is root on this host (see --tlsverify)", address)

    async def stop(self) -> None:
        """No new connections; those open are given a moment, operations under way are completed."""
        for listener in self._listeners:
            if self._unlink:
                unlink_path(listener)
        for server in self._servers:
            server.close()  # closes the listeners too
        if self._tls is not None:
            self._tls.close()
        await self.app.finish()
        self._http.pre_shutdown()
        await self._http.shutdown(_GRACE_S)
        self._servers.clear()
        self._listeners.clear()


@contextlib.asynccontextmanager
async def serve(engine: Engine, settings: Settings) -> AsyncIterator[Server]:
    """Answers requests on `settings.host` (or systemd's sockets) inside the block."""
    server = Server(engine)
    await server.start(settings)
    try:
        yield server
    finally:
        await server.stop()


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"unix://{name}" if listener.family == socket.AF_UNIX else f"tcp://{name[0]}:{name[1]}"
