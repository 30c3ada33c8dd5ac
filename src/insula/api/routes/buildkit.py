"""The two pages that stop being HTTP/1.1: BuildKit's gRPC API and its sessions.

What is behind them is loaded by the first client.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING

from aiohttp import web

from insula.api.call import Call
from insula.api.hijack import Hijacked, upgrade
from insula.api.routing import Route
from insula.errors import InvalidRequest

if TYPE_CHECKING:
    from insula.api.buildkit.services import Services
    from insula.engine.engine import Engine


@functools.cache
def _of(engine: Engine) -> Services:
    """A daemon has one engine."""
    from insula.api.buildkit.services import Services

    return Services(engine)


def _check(call: Call) -> None:
    if call.http.headers.get("Upgrade", "").lower() != "h2c":
        raise InvalidRequest("no upgrade requested: this page speaks gRPC", hint="Upgrade: h2c")


async def grpc(call: Call) -> web.StreamResponse:
    _check(call)
    from insula.api.buildkit.connection import until_closed

    protocol = _of(call.engine).server.protocol()
    await until_closed(upgrade(call.http, "h2c", protocol), protocol)
    return Hijacked()


async def session(call: Call) -> web.StreamResponse:
    _check(call)
    from insula.api.buildkit.connection import Calling, until_closed
    from insula.api.buildkit.session import SESSION_ID, SESSION_KEY, SESSION_METHOD, Session

    headers = call.http.headers
    if not (ident := headers.get(SESSION_ID, "")):
        raise InvalidRequest(f"{SESSION_ID}: a session needs a name")
    channel = Calling()
    offered = frozenset(headers.getall(SESSION_METHOD, ()))
    one = Session(ident, offered, channel, headers.get(SESSION_KEY, ""))
    closed = upgrade(call.http, "h2c", channel.protocol)
    with contextlib.closing(channel), _of(call.engine).builds.sessions.entered(one):
        await until_closed(closed, channel.protocol)
    return Hijacked()


ROUTES = (Route("POST", "/grpc", grpc), Route("POST", "/session", session))
