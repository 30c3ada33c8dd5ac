"""Networks: the predefined ones, listed and inspected."""

from __future__ import annotations

from aiohttp import web

from insula.api.call import Call, answer
from insula.api.routing import Route
from insula.api.translate_volume import render_network
from insula.errors import Forbidden, InvalidRequest, NoSuchNetwork, NotImplementedYet
from insula.model.network import Network

_PREDEFINED = ("bridge", "host", "none")


async def list_(call: Call) -> web.StreamResponse:
    filters = call.filters().accept("dangling", "driver", "id", "label", "name", "scope", "type")
    for kind in filters.get("type"):
        if kind not in ("builtin", "custom"):
            raise InvalidRequest(f"invalid filter: 'type'='{kind[:64]}'")
    dangling = filters.flag("dangling")
    views = tuple(call.engine.describe(i.id) for i in call.engine.list()) if dangling is not None else ()
    used = {e.network_id for view in views for e in view.endpoints}

    def matches(network: Network) -> bool:
        predefined = network.name in _PREDEFINED
        return (
            filters.starts("id", network.id)
            and filters.searches("name", (network.name,))
            and filters.has("driver", network.driver)
            and filters.has("scope", "local")
            and filters.has("type", "builtin" if predefined else "custom")
            and filters.labels(network.labels)
            and (dangling is None or dangling == (not predefined and network.id not in used))
        )

    return answer([render_network(n) for n in call.engine.networks.list() if matches(n)])


async def inspect(call: Call) -> web.StreamResponse:
    network = call.engine.networks.find(call.names["id"])
    if call.text("scope") not in ("", "local"):
        raise NoSuchNetwork(call.names["id"])
    return answer(render_network(network, tuple(call.engine.describe(i.id) for i in call.engine.list())))


async def remove(call: Call) -> web.StreamResponse:
    network = call.engine.networks.find(call.names["id"])
    raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")


async def change(call: Call) -> web.StreamResponse:
    raise NotImplementedYet(
        "networks of one's own are not supported so far", hint="every instance can use bridge, host or none"
    )


async def prune(call: Call) -> web.StreamResponse:
    """There is none of one's own, so none is unused."""
    call.filters().accept("label", "label!", "until")
    return answer({"NetworksDeleted": None})


ROUTES = (
    Route("GET", "/networks", list_),
    Route("POST", "/networks/create", change),
    Route("POST", "/networks/prune", prune),
    Route("GET", "/networks/{id}", inspect),
    Route("DELETE", "/networks/{id}", remove),
    Route("POST", "/networks/{id}/connect", change),
    Route("POST", "/networks/{id}/disconnect", change),
)
