"""What Docker's API has no word for."""

from __future__ import annotations

import platform

from aiohttp import web

from insula import __version__
from insula.api.call import Call, answer
from insula.api.progress import Teller, stream_progress
from insula.api.routing import Route
from insula.api.times import format_time
from insula.errors import InvalidRequest
from insula.model.template import TemplateView


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


def _shown(view: TemplateView) -> dict[str, object]:
    return {
        "Key": view.key,
        "Kernel": view.kernel,
        "Accelerator": view.accelerator,
        "Hypervisor": view.hypervisor,
        "Cpus": view.vcpus,
        "MemoryMiB": view.memory_mib,
        "Created": format_time(view.created_ns),
        "BootMs": view.boot_ms,
        "Size": view.size_bytes,
        "Loaded": view.loaded,
        "Current": view.current,
    }


async def list_templates(call: Call) -> web.StreamResponse:
    return answer([_shown(view) for view in await call.engine.templates.list()])


async def inspect_template(call: Call) -> web.StreamResponse:
    return answer(_shown(await call.engine.templates.find(call.names["key"])))


async def remove_template(call: Call) -> web.StreamResponse:
    return answer(_shown(await call.engine.templates.remove(call.names["key"])))


async def prune_templates(call: Call) -> web.StreamResponse:
    report = await call.engine.templates.prune(all=call.flag("all"))
    return answer({"TemplatesDeleted": list(report.deleted), "SpaceReclaimed": report.reclaimed_bytes})


async def warm_template(call: Call) -> web.StreamResponse:
    vcpus, memory_mib = call.number("vcpus"), call.number("memory")

    async def work(tell: Teller) -> None:
        view = await call.engine.templates.warm(tell, vcpus=vcpus, memory_mib=memory_mib)
        tell.line({"aux": {"ID": view.key}})

    return await stream_progress(call, work)


ROUTES = (
    Route("GET", "/insula/v1/info", info),
    Route("POST", "/insula/v1/images/bootstrap", bootstrap),
    Route("POST", "/insula/v1/guest/make", make_guest),
    Route("GET", "/insula/v1/templates", list_templates),
    Route("POST", "/insula/v1/templates/prune", prune_templates, completes=True),
    Route("POST", "/insula/v1/templates/warm", warm_template),
    Route("GET", "/insula/v1/templates/{key}", inspect_template),
    Route("DELETE", "/insula/v1/templates/{key}", remove_template, completes=True),
)
