"""Named volumes."""

from __future__ import annotations

import time

from aiohttp import web

from insula.api.call import Call, answer, empty
from insula.api.filters import Filters
from insula.api.routing import Route
from insula.api.translate_volume import render_volume
from insula.api.wire.volume import VolumeCreateOptions
from insula.errors import UnsupportedField


def _used(call: Call) -> set[str]:
    """Names of volumes that some container mounts."""
    return {m.name for i in call.engine.list(all=True) for m in call.engine.describe(i.id).mounts if m.name}


async def list_(call: Call) -> web.StreamResponse:
    filters: Filters = call.filters().accept("dangling", "driver", "label", "name")
    dangling = filters.flag("dangling")
    used = _used(call) if dangling is not None else set()
    found = [
        v
        for v in call.engine.volumes.list()
        if filters.searches("name", (v.name,))
        and filters.has("driver", "local")
        and filters.labels(v.labels)
        and (dangling is None or dangling == (v.name not in used))
    ]
    return answer({"Volumes": [render_volume(v) for v in found], "Warnings": None})


async def create(call: Call) -> web.StreamResponse:
    given = await call.json(VolumeCreateOptions, optional=True)
    if given.ClusterVolumeSpec:
        raise UnsupportedField("ClusterVolumeSpec", "this engine is not part of a swarm")
    volume = await call.engine.volumes.create(
        given.Name,
        driver=given.Driver or "local",
        labels=given.Labels,
        options=given.DriverOpts,
        anonymous=not given.Name,
    )
    return answer(render_volume(volume), 201)


async def inspect(call: Call) -> web.StreamResponse:
    return answer(render_volume(call.engine.volumes.find(call.names["name"])))


async def remove(call: Call) -> web.StreamResponse:
    await call.engine.remove_volume(call.names["name"], force=call.flag("force"))
    return empty()


async def prune(call: Call) -> web.StreamResponse:
    filters = call.filters()
    filters.accept("all", "label", "label!")
    everything = filters.flag("all") if call.version >= (1, 42) else True
    report = await call.engine.prune_volumes(filters.for_prune(time.time_ns(), "all"), all=bool(everything))
    return answer({"VolumesDeleted": list(report.deleted), "SpaceReclaimed": report.reclaimed_bytes})


ROUTES = (
    Route("GET", "/volumes", list_),
    Route("POST", "/volumes/create", create, completes=True),
    Route("POST", "/volumes/prune", prune, completes=True),
    Route("GET", "/volumes/{name}", inspect),
    Route("DELETE", "/volumes/{name}", remove, completes=True),
)
