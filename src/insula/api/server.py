"""The API on its sockets.  Async.

server = await start_server(engine, settings.host)
…
await server.stop()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator

from insula.api.app import Application
from insula.api.doorway import DoorServer
from insula.api.listen import inherited_sockets, open_listeners, unlink_path
from insula.config import Settings
from insula.engine.engine import Engine

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

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens, as clients write it."""
        return tuple(_address(listener) for listener in self._listeners)

    async def start(self, hosts: tuple[str, ...]) -> None:
        """Raises what `open_listeners` raises.  Answers requests when it returns."""
        loop = asyncio.get_running_loop()
        inherited = inherited_sockets()
        self._unlink = not inherited  # systemd's paths stay: it goes on listening for us
        self._listeners = inherited or open_listeners(hosts)
        for listener in self._listeners:
            if listener.family == socket.AF_UNIX:
                started = await loop.create_unix_server(self._http, sock=listener, backlog=1024)
            else:
                started = await loop.create_server(self._http, sock=listener, backlog=1024)
            self._servers.append(started)
        log.info("API on %s", ", ".join(self.addresses))

    async def stop(self) -> None:
        """No new connections; those open are given a moment, operations under way are completed."""
        for listener in self._listeners:
            if self._unlink:
                unlink_path(listener)
        for server in self._servers:
            server.close()  # closes the listeners too
        await self.app.finish()
        self._http.pre_shutdown()
        await self._http.shutdown(_GRACE_S)
        self._servers.clear()
        self._listeners.clear()


@contextlib.asynccontextmanager
async def serve(engine: Engine, settings: Settings) -> AsyncIterator[Server]:
    """Answers requests on `settings.host` (or systemd's sockets) inside the block."""
    server = Server(engine)
    await server.start(settings.host)
    try:
        yield server
    finally:
        await server.stop()


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"unix://{name}" if listener.family == socket.AF_UNIX else f"tcp://{name[0]}:{name[1]}"
