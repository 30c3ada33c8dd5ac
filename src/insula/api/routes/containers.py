"""Containers: create, list, inspect, and everything that changes their state."""

from __future__ import annotations

import time

from aiohttp import web

from insula.api.call import Call, answer, empty, streaming
from insula.api.listing import select
from insula.api.routes.copies import refuse_directory
from insula.api.routing import Route
from insula.api.translate_create import parse_create, parse_restart, unknown_fields
from insula.api.translate_inspect import render_inspect
from insula.api.translate_limits import merge_limits, warn_update
from insula.api.translate_list import render_summary
from insula.api.wire.codec import convert, json_bytes, read_json, spell, to_builtins
from insula.api.wire.container import ContainerTopResponse, ContainerWaitResponse, WaitExitError
from insula.api.wire.container_config import ContainerCreateRequest, ContainerCreateResponse
from insula.api.wire.host_config import ContainerUpdateResponse, UpdateConfig
from insula.engine.types import WaitCondition
from insula.errors import Conflict, InvalidRequest, NoSuchInstance, NotFound


async def create(call: Call) -> web.StreamResponse:
    document = spell(read_json(await call.json_body()), ContainerCreateRequest)
    if isinstance(document, dict) and not document.keys() - {"HostConfig", "NetworkingConfig"}:
        raise InvalidRequest("config cannot be empty in order to create a container")
    request = convert(document, ContainerCreateRequest)
    parsed = parse_create(request, call.engine.settings.default_isolation, call.version)
    _check_platform(call, request.Image)
    created = await call.engine.create(parsed.spec, call.text("name") or None)
    warnings = [*created.warnings, *parsed.warnings, *unknown_fields(document)]
    return answer(ContainerCreateResponse(Id=created.id, Warnings=warnings), 201)


def _check_platform(call: Call, image_name: str) -> None:
    """`--platform`: the image that is here must be of it."""
    wanted = call.text("platform")
    if not wanted or call.version < (1, 41):
        return
    parts = wanted.split("/")
    platform = call.engine.images.find(image_name).platform
    have = f"{platform.os}/{platform.architecture}"
    if len(parts) > 3 or "" in parts:
        raise InvalidRequest(f"{wanted[:64]!r} is an invalid component of a platform")
    architecture = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"}.get(parts[-1], parts[-1])
    named = "/".join([*parts[:1], architecture]) if len(parts) == 2 else "/".join(parts[:2])
    if len(parts) == 1:
        named = have if parts[0] in (platform.os, platform.architecture) else parts[0]
    if named != have:
        raise NotFound(
            f"image with reference {image_name} was found but does not provide the specified platform "
            f"({wanted}): it is {have}"
        )


async def list_(call: Call) -> web.StreamResponse:
    limit = call.number("limit") or 0
    now_ns = time.time_ns()
    size = call.flag("size")
    documents = []
    for view in select(
        call.engine,
        call.filters(),
        all=call.flag("all"),
        limit=limit,
        since=call.text("since"),
        before=call.text("before"),
    ):
        document = to_builtins(render_summary(view, now_ns, call.version))
        if size:
            sizes = await call.engine.sizes(view.instance.id)
            document |= {"SizeRw": sizes.written_bytes, "SizeRootFs": sizes.total_bytes}
        documents.append(document)
    return answer(documents)


async def inspect(call: Call) -> web.StreamResponse:
    view = call.engine.describe(call.names["id"])
    document = render_inspect(view, call.version)
    if not call.flag("size"):
        return answer(document)
    sizes = await call.engine.sizes(view.instance.id)
    more = {"SizeRw": sizes.written_bytes, "SizeRootFs": sizes.total_bytes}
    return answer(to_builtins(document) | more)


async def start(call: Call) -> web.StreamResponse:
    if (call.http.content_length or 0) > 7:
        raise InvalidRequest(
            "starting container with non-empty request body was deprecated since API v1.22 "
            "and removed in v1.24"
        )
    refuse_directory(call.text("checkpoint-dir"))
    if checkpoint := call.text("checkpoint"):
        await call.engine.restore(call.names["id"], checkpoint)
    else:
        await call.engine.start_instance(call.names["id"])
    return empty()


def _stop_signal(call: Call) -> str | None:
    return (call.text("signal") or None) if call.version >= (1, 42) else None


async def stop(call: Call) -> web.StreamResponse:
    await call.engine.stop_instance(call.names["id"], timeout_s=call.number("t"), signal=_stop_signal(call))
    return empty()


async def restart(call: Call) -> web.StreamResponse:
    await call.engine.restart(call.names["id"], timeout_s=call.number("t"), signal=_stop_signal(call))
    return empty()


async def kill(call: Call) -> web.StreamResponse:
    try:
        await call.engine.kill(call.names["id"], call.text("signal") or "KILL")
    except NoSuchInstance as error:
        raise NotFound(f"Cannot kill container: {call.names['id']}: {error}") from error
    return empty()


async def pause(call: Call) -> web.StreamResponse:
    await call.engine.pause(call.names["id"])
    return empty()


async def unpause(call: Call) -> web.StreamResponse:
    await call.engine.unpause(call.names["id"])
    return empty()


async def rename(call: Call) -> web.StreamResponse:
    new = call.text("name")
    if not new or new == "/":
        raise InvalidRequest("Neither old nor new names may be empty")
    await call.engine.rename(call.names["id"], new)
    return empty()


async def update(call: Call) -> web.StreamResponse:
    given = await call.json(UpdateConfig)
    instance = call.engine.find(call.names["id"])
    policy = given.RestartPolicy
    warnings = await call.engine.update(
        instance.id,
        limits=merge_limits(instance.spec.limits, given),
        restart=parse_restart(policy) if policy is not None and policy.Name else None,
    )
    return answer(ContainerUpdateResponse(Warnings=[*warnings, *warn_update(given, call.version)]))


async def remove(call: Call) -> web.StreamResponse:
    if call.flag("link"):
        call.engine.find(call.names["id"])
        raise Conflict("Conflict, cannot remove the default link name of the container")
    await call.engine.remove(call.names["id"], force=call.flag("force"), volumes=call.flag("v"))
    return empty()


async def remove_link(call: Call) -> web.StreamResponse:
    """`rm --link parent/alias`."""
    if not call.flag("link"):
        raise NoSuchInstance(f"{call.names['parent']}/{call.names['alias']}")
    await call.engine.unlink(call.names["parent"], call.names["alias"])
    return empty()


async def wait(call: Call) -> web.StreamResponse:
    """Headers leave once the wait is registered: the docker client starts the container only then."""
    word = (call.text("condition") if call.version >= (1, 30) else "") or WaitCondition.NOT_RUNNING
    try:
        condition = WaitCondition(word)
    except ValueError:
        raise InvalidRequest(f'invalid condition: "{word[:64]}"') from None
    exited = call.engine.wait(call.names["id"], condition)
    response = streaming("application/json")
    await response.prepare(call.http)
    status = await exited
    # the docker client exits with 125 when there is an Error, whatever the code
    error = WaitExitError(Message=status.error) if status.error and status.code == 0 else None
    await response.write(json_bytes(ContainerWaitResponse(StatusCode=status.code, Error=error)))
    return response


async def top(call: Call) -> web.StreamResponse:
    args = call.text("ps_args") or "-ef"
    table = await call.engine.top(call.names["id"], args.split())
    return answer(
        ContainerTopResponse(Titles=list(table.titles), Processes=[list(row) for row in table.rows])
    )


async def prune(call: Call) -> web.StreamResponse:
    report = await call.engine.prune_instances(call.filters().for_prune(time.time_ns()))
    return answer(
        {"ContainersDeleted": list(report.deleted) or None, "SpaceReclaimed": report.reclaimed_bytes}
    )


ROUTES = (
    Route("GET", "/containers/json", list_),
    Route("POST", "/containers/create", create, completes=True),
    Route("POST", "/containers/prune", prune, completes=True),
    Route("GET", "/containers/{id}/json", inspect),
    Route("POST", "/containers/{id}/start", start, completes=True),
    Route("POST", "/containers/{id}/stop", stop, completes=True),
    Route("POST", "/containers/{id}/restart", restart, completes=True),
    Route("POST", "/containers/{id}/kill", kill, completes=True),
    Route("POST", "/containers/{id}/pause", pause, completes=True),
    Route("POST", "/containers/{id}/unpause", unpause, completes=True),
    Route("POST", "/containers/{id}/rename", rename, completes=True),
    Route("POST", "/containers/{id}/update", update, completes=True),
    Route("POST", "/containers/{id}/wait", wait),
    Route("GET", "/containers/{id}/top", top),
    Route("DELETE", "/containers/{id}", remove, completes=True),
    Route("DELETE", "/containers/{parent}/{alias}", remove_link, completes=True),
)
