"""What Docker's API has no word for."""

from __future__ import annotations

import platform

from aiohttp import web

from insula import __version__
from insula.api.call import Call, answer
from insula.api.progress import Teller, stream_progress
from insula.api.routing import Route
from insula.errors import InvalidRequest


async def info(call: Call) -> web.StreamResponse:
    """The isolations of this host: what stands behind each, which kernel its instances see."""
    found = call.engine.info()
    return answer(
        {
            "Version": __version__,
            "DefaultIsolation": found.default_isolation.value,
            "HostKernel": platform.release(),
            "Isolations": [
                {
                    "Name": b.isolation.value,
                    "Runtime": b.runtime,
                    "Version": b.version,
                    "Available": not b.problem,
                    "Problem": b.problem,
                    "Details": dict(b.details),
                }
                for b in found.backends
            ],
        }
    )


async def bootstrap(call: Call) -> web.StreamResponse:
    name = call.text("name")
    if not name:
        raise InvalidRequest("bootstrap: the request names no image", hint="name=debian:12")

    async def work(tell: Teller) -> None:
        image = await call.engine.images.bootstrap(name, tell)
        tell.line({"aux": {"ID": image.id}})

    return await stream_progress(call, work)


async def make_guest(call: Call) -> web.StreamResponse:
    async def work(tell: Teller) -> None:
        await call.engine.make_guest(tell)
        tell("The guest is ready")

    return await stream_progress(call, work)


ROUTES = (
    Route("GET", "/insula/v1/info", info),
    Route("POST", "/insula/v1/images/bootstrap", bootstrap),
    Route("POST", "/insula/v1/guest/make", make_guest),
)
