"""Networks."""

from __future__ import annotations

import time

from aiohttp import web

from insula.api.call import Call, answer, empty
from insula.api.routing import Route
from insula.api.translate_network import parse_endpoint, parse_network, warn_network
from insula.api.translate_volume import render_network
from insula.api.wire.network import NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest
from insula.errors import InvalidRequest, NoSuchNetwork
from insula.model.network import Network


async def list_(call: Call) -> web.StreamResponse:
    filters = call.filters().accept("dangling", "driver", "id", "label", "name", "scope", "type")
    for kind in filters.get("type"):
        if kind not in ("builtin", "custom"):
            raise InvalidRequest(f"invalid filter: 'type'='{kind[:64]}'")
    dangling = filters.flag("dangling")
    networks = call.engine.networks

    def matches(network: Network) -> bool:
        return (
            filters.starts("id", network.id)
            and filters.searches("name", (network.name,))
            and filters.has("driver", network.driver)
            and filters.has("scope", "local")
            and filters.has("type", "builtin" if network.predefined else "custom")
            and filters.labels(network.labels)
            and (
                dangling is None or dangling == (not network.predefined and not networks.members(network.id))
            )
        )

    return answer([render_network(n, None, call.version) for n in networks.list() if matches(n)])


async def inspect(call: Call) -> web.StreamResponse:
    network = call.engine.networks.find(call.names["id"])
    if call.text("scope") not in ("", "local"):
        raise NoSuchNetwork(call.names["id"])
    views = tuple(call.engine.describe(i.id) for i in call.engine.list())
    return answer(render_network(network, views, call.version))


async def create(call: Call) -> web.StreamResponse:
    request = parse_network(await call.json(NetworkCreateRequest))
    others = call.engine.networks.list()
    network = await call.engine.networks.create(request)
    return answer({"Id": network.id, "Warning": warn_network(request, network, others)}, 201)


async def remove(call: Call) -> web.StreamResponse:
    await call.engine.networks.remove(call.names["id"])
    return empty()


async def prune(call: Call) -> web.StreamResponse:
    report = await call.engine.networks.prune(call.filters().for_prune(time.time_ns()))
    return answer({"NetworksDeleted": list(report.deleted) or None})


async def connect(call: Call) -> web.StreamResponse:
    given = await call.json(NetworkConnectRequest)
    if not given.Container:
        raise InvalidRequest("Container: the request names no container")
    wanted = parse_endpoint(call.names["id"], given.EndpointConfig, "EndpointConfig.")
    await call.engine.connect(given.Container, wanted)
    return empty(200)


async def disconnect(call: Call) -> web.StreamResponse:
    given = await call.json(NetworkDisconnectRequest)
    if not given.Container:
        raise InvalidRequest("Container: the request names no container")
    await call.engine.disconnect(given.Container, call.names["id"], force=given.Force)
    return empty(200)


ROUTES = (
    Route("GET", "/networks", list_),
    Route("GET", "/networks/", list_),  # moby has this one, too
    Route("POST", "/networks/create", create, completes=True),
    Route("POST", "/networks/prune", prune, completes=True),
    Route("GET", "/networks/{id*}", inspect),
    Route("DELETE", "/networks/{id*}", remove, completes=True),
    Route("POST", "/networks/{id*}/connect", connect, completes=True),
    Route("POST", "/networks/{id*}/disconnect", disconnect, completes=True),
)
