"""What this engine has none of: swarm, plugins.  Answers in Docker's words."""

from __future__ import annotations

from aiohttp import web

from insula.api.call import Call, answer
from insula.api.routing import Handler, Route
from insula.errors import NotFound, NotImplementedYet, Unavailable


async def no_swarm(call: Call) -> web.StreamResponse:
    raise Unavailable(
        'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this '
        "node to swarm and try again."
    )


async def no_plugins(call: Call) -> web.StreamResponse:
    return answer([])


async def no_such_plugin(call: Call) -> web.StreamResponse:
    raise NotFound(f'plugin "{call.names["name"]}" not found')


def _absent(what: str, hint: str) -> Handler:
    async def refuse(call: Call) -> web.StreamResponse:
        raise NotImplementedYet(f"{what} not supported", hint=hint)

    return refuse


_swarm = ("swarm", "nodes", "services", "tasks", "secrets", "configs")
_no_cancel = _absent("cancelling a build by its id is", "end the client")

ROUTES = (
    *(Route(method, f"/{word}", no_swarm) for word in _swarm for method in ("GET", "POST")),
    *(
        Route(method, f"/{word}/{{rest*}}", no_swarm)
        for word in _swarm
        for method in ("GET", "POST", "DELETE", "PUT")
    ),
    Route("PUT", "/volumes/{name}", no_swarm),  # of cluster volumes only
    Route("GET", "/plugins", no_plugins),
    Route("GET", "/plugins/{name*}/json", no_such_plugin),
    Route("GET", "/plugins/privileges", _absent("plugins are", "volumes and networks are built in")),
    Route("POST", "/plugins/{rest*}", _absent("plugins are", "volumes and networks are built in")),
    Route("DELETE", "/plugins/{name*}", no_such_plugin),
    Route("POST", "/build/cancel", _no_cancel),
)
