"""A container's output and input: attach, logs, resize, stats."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from aiohttp import web

from insula.api import mux
from insula.api.call import Call, answer, empty, streaming
from insula.api.escape import parse_keys
from insula.api.pump import Terms, pump
from insula.api.routing import Route
from insula.api.times import format_time, parse_time
from insula.api.translate_stats import Measured, host_cpu_ns, render_stats
from insula.api.wire.codec import json_bytes
from insula.engine.log_options import log_attributes, render_attributes
from insula.engine.types import LogQuery, LogRecord
from insula.errors import Conflict, InvalidRequest, NoSuchInstance, NotImplementedYet
from insula.model.instance import State
from insula.model.stream import Stream

Convey = Callable[[Call, Stream, Terms], Awaitable[tuple[web.StreamResponse, bool]]]


async def attach(call: Call) -> web.StreamResponse:
    await call.body()
    return await _attach(call, pump)


async def attach_websocket(call: Call) -> web.StreamResponse:
    """The module, and aiohttp's part that it needs, come with the first that asks."""
    from insula.api.websocket import pump_websocket

    call.engine.find(call.names["id"])  # what is not there is said first
    if call.http.headers.get("Upgrade", "").lower() != "websocket":
        raise InvalidRequest(
            "attach/ws: this is no websocket's handshake", hint="POST …/attach upgrades, too"
        )
    return await _attach(call, pump_websocket)


async def _attach(call: Call, convey: Convey) -> web.StreamResponse:
    keys = parse_keys(call.text("detachKeys"))
    view = call.engine.describe(call.names["id"])
    instance, tty = view.instance, view.instance.spec.tty
    if instance.state is State.PAUSED:
        raise Conflict(f"container {instance.id} is paused, unpause the container before attach")
    if instance.state is State.RESTARTING:
        raise Conflict(f"container {instance.id} is restarting, wait until the container is running")
    stdin = call.flag("stdin") and instance.spec.open_stdin
    stream = await call.engine.attach(
        instance.id,
        stdin=stdin,
        stdout=call.flag("stdout"),
        stderr=call.flag("stderr"),
        logs=call.flag("logs"),
        stream=call.flag("stream"),
    )
    multiplexed = not tty and call.version >= (1, 42)
    terms = Terms(
        tty=tty,
        framed=not tty,
        stdin=stdin and call.flag("stream"),
        detach_keys=keys,
        content_type=mux.MULTIPLEXED if multiplexed else mux.RAW,
    )
    response, detached = await convey(call, stream, terms)
    if detached:
        call.engine.events.publish(
            "container",
            "detach",
            instance.id,
            **{**view.config.labels, "image": instance.spec.image, "name": instance.name},
        )
    return response


async def resize(call: Call) -> web.StreamResponse:
    rows, cols = terminal_size(call)
    await call.engine.resize(call.names["id"], rows, cols)
    return empty(200)


def terminal_size(call: Call) -> tuple[int, int]:
    rows, cols = call.number("h"), call.number("w")
    if rows is None or cols is None:
        raise InvalidRequest("resize needs h and w, the rows and columns of the terminal")
    if not (0 <= rows <= 65535 and 0 <= cols <= 65535):
        raise InvalidRequest(f"resize: {rows}×{cols} is no size of a terminal")
    return rows, cols


async def logs(call: Call) -> web.StreamResponse:
    stdout, stderr = call.flag("stdout"), call.flag("stderr")
    if not (stdout or stderr):
        raise InvalidRequest("Bad parameters: you must choose at least one stream")
    view = call.engine.describe(call.names["id"])
    spec, now_ns = view.instance.spec, time.time_ns()
    if spec.log.driver == "none":
        raise NotImplementedYet("configured logging driver does not support reading")
    query = LogQuery(
        since_ns=_moment(call, "since", now_ns),
        until_ns=_moment(call, "until", now_ns),
        tail=_tail(call.text("tail")),
        follow=call.flag("follow"),
        stdout=stdout,
        stderr=stderr,
    )
    batches = call.engine.logs(view.instance.id, query)
    details = render_attributes(log_attributes(view.instance)).encode() if call.flag("details") else None
    form = _Form(multiplexed=not spec.tty, timestamps=call.flag("timestamps"), details=details)
    response = streaming(mux.MULTIPLEXED if form.multiplexed and call.version >= (1, 42) else mux.RAW)
    await response.prepare(call.http)
    async for batch in batches:
        data = batch.rendered.get(form)
        if data is None:
            data = batch.rendered[form] = form.render(batch.records)
        await response.write(data)
    return response


@dataclass(frozen=True, slots=True)
class _Form:
    """How a log's lines are shown."""

    multiplexed: bool
    timestamps: bool
    details: bytes | None

    def render(self, records: Iterable[LogRecord]) -> bytes:
        return b"".join([self._line(record) for record in records])

    def _line(self, record: LogRecord) -> bytes:
        data = record.data
        if self.details is not None:
            data = self.details + b" " + data
        if self.timestamps:
            data = format_time(record.time_ns, fixed=True).encode() + b" " + data
        return mux.frame(record.channel, data) if self.multiplexed else data


def _moment(call: Call, name: str, now_ns: int) -> int:
    text = call.text(name)
    return max(parse_time(text, now_ns, name), 0) if text and text != "0" else 0


def _tail(text: str) -> int | None:
    """`all`, nothing and negative numbers mean all; so does what is no number, as in dockerd."""
    try:
        count = int(text[:12])
    except ValueError:
        return None
    return count if count >= 0 else None


async def stats(call: Call) -> web.StreamResponse:
    instance = call.engine.find(call.names["id"])
    stream = call.flag("stream", True)
    before = None
    if not stream:
        if instance.state in (State.RUNNING, State.PAUSED) and not (
            call.flag("one-shot") and call.version >= (1, 41)
        ):
            before = await _sample(call, instance.id)
            await asyncio.sleep(1)  # the CPU's share is counted over a second, as dockerd does
        return answer(render_stats(call.engine.find(instance.id), await _sample(call, instance.id), before))
    response = streaming("application/json")
    await response.prepare(call.http)
    while True:
        try:
            sample = await _sample(call, instance.id)
            await response.write(json_bytes(render_stats(call.engine.find(instance.id), sample, before)))
        except NoSuchInstance:
            return response
        before = sample
        await asyncio.sleep(1)


async def _sample(call: Call, instance_id: str) -> Measured | None:
    """None when it does not run: stats are then empty but for the name."""
    if call.engine.find(instance_id).state not in (State.RUNNING, State.PAUSED):
        return None
    try:
        sample = await call.engine.sample(instance_id)
    except (Conflict, NoSuchInstance):
        call.engine.find(instance_id)
        return None
    return Measured(sample, host_cpu_ns())


ROUTES = (
    Route("POST", "/containers/{id}/attach", attach),
    Route("GET", "/containers/{id}/attach/ws", attach_websocket),
    Route("POST", "/containers/{id}/resize", resize),
    Route("GET", "/containers/{id}/logs", logs),
    Route("GET", "/containers/{id}/stats", stats),
)
