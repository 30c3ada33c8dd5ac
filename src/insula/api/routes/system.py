"""The engine itself: ping, version, info, events, disk usage."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from insula.api.call import Call, answer, streaming
from insula.api.routing import Route
from insula.api.times import parse_time
from insula.api.translate_info import Activity, render_info, render_version
from insula.api.translate_system import (
    EVENT_FILTERS,
    event_matches,
    render_disk_usage,
    render_event,
)
from insula.api.wire.codec import json_bytes
from insula.errors import InvalidRequest
from insula.system.kernel_facts import find_kernel_facts

_PING_HEADERS = {
    "Builder-Version": "1",
    "Swarm": "inactive",
    "Cache-Control": "no-cache, no-store, must-revalidate",
    "Pragma": "no-cache",
    "Content-Type": "text/plain; charset=utf-8",
}


async def ping(call: Call) -> web.StreamResponse:
    return web.Response(body=b"" if call.http.method == "HEAD" else b"OK", headers=_PING_HEADERS)


async def version(call: Call) -> web.StreamResponse:
    return answer(render_version(call.engine.info()))


async def info(call: Call) -> web.StreamResponse:
    facts = await asyncio.to_thread(find_kernel_facts)
    activity = Activity(listeners=call.engine.events.followers, tasks=len(asyncio.all_tasks()))
    return answer(render_info(call.engine.info(), call.engine.settings, facts, activity, call.version))


async def events(call: Call) -> web.StreamResponse:
    filters, now_ns = call.filters().accept(*EVENT_FILTERS), time.time_ns()
    since, until = call.text("since"), call.text("until")
    since_ns = parse_time(since, now_ns, "since") if since else None
    until_ns = parse_time(until, now_ns, "until") if until else None
    if since_ns is not None and until_ns is not None and until_ns < since_ns:
        raise InvalidRequest(f"`since` time ({since[:64]}) cannot be after `until` time ({until[:64]})")
    following = call.engine.events.follow(since_ns if since_ns is not None or until_ns is None else 0)
    # the follower registers with its first step; only then may the client know that it follows
    coming = asyncio.ensure_future(anext(following))
    try:
        await asyncio.sleep(0)
        response = streaming("application/json")
        await response.prepare(call.http)
        while True:
            await asyncio.sleep(0)  # one step brings a remembered event, if there is one
            left_s = None if until_ns is None else max(0.0, (until_ns - time.time_ns()) / 1e9)
            done, _ = await asyncio.wait([coming], timeout=left_s)
            if not done:
                return response
            try:
                event = coming.result()
            except StopAsyncIteration:
                return response
            coming = asyncio.ensure_future(anext(following))
            if until_ns is not None and event.time_ns > until_ns:
                return response
            if event_matches(event, filters):
                await response.write(json_bytes(render_event(event)))
    finally:
        coming.cancel()
        await asyncio.wait([coming])
        await following.aclose()  # type: ignore[attr-defined]


async def disk_usage(call: Call) -> web.StreamResponse:
    kinds = call.texts("type") if call.version >= (1, 42) else ()
    for kind in kinds:
        if kind not in ("container", "image", "volume", "build-cache"):
            raise InvalidRequest(f"unknown object type: {kind[:64]}")
    caches = []
    if not kinds or "build-cache" in kinds:
        from insula.build.prune import list_contexts

        caches = await list_contexts(call.engine)
    return answer(render_disk_usage(await call.engine.disk_usage(), kinds, call.version, caches))


ROUTES = (
    Route("GET", "/_ping", ping),
    Route("HEAD", "/_ping", ping),
    Route("GET", "/version", version),
    Route("GET", "/info", info),
    Route("GET", "/events", events),
    Route("GET", "/system/df", disk_usage),
)
