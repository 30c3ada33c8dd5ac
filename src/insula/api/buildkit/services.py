"""The gRPC methods of Control, LLBBridge (the gateway) and Health.  Async.

An error of ours is BuildKit's status; what is not here is UNIMPLEMENTED, which clients ask about.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from insula import __version__
from insula.api.buildkit import wire_pb2 as wire
from insula.api.buildkit.connection import Calling, Methods, Served, Tunnel
from insula.api.buildkit.session import SESSION_ID, SESSION_KEY, SESSION_METHOD, Session
from insula.api.buildkit.solve import Builds, definition_of
from insula.build.prune import CacheRecord, list_caches, remove_caches
from insula.errors import InsulaError, UnsupportedField
from insula.images.registry.manifests import host_platform
from insula.model.reports import PruneFilters

if TYPE_CHECKING:
    from insula.engine.engine import Engine

log = logging.getLogger(__name__)

_VERSION = "v0.17.3"  # of BuildKit, as the Docker that we say we are has it
# as buildx writes `--filter NAME=VALUE`: `name==value`, several with commas between them
_PARTS = re.compile(r'(?:[^,"]|"[^"]*")+')
_FILTER = re.compile(r'(id|type|description)(==|~=|!=)("[^"]*"|[^"]*)')

# what a frontend's client may ask of the gateway, and what a build may ask for (BuildKit's apicaps)
_FRONTEND_CAPS = (
    "solve.base",
    "return",
    "proto.refarray",
    "reference.output",
    "frontend.inputs",
    "frontend.caps",
    "gateway.solve.metadata",
    "gateway.solve.evaluate",
    "gateway.evaluate",
)
_BUILD_CAPS = (
    "source.image",
    "source.local",
    "source.local.sessionid",
    "source.local.includepatterns",
    "source.local.followpaths",
    "source.local.excludepatterns",
    "exporter.multiple",
)


class Services:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.builds = Builds(engine)
        self.server = Served(self._methods())

    def _methods(self) -> Methods:
        control, bridge = "/moby.buildkit.v1.Control/", "/moby.buildkit.v1.frontend.LLBBridge/"
        return {
            control + "Info": _unary(self._info, wire.InfoRequest, wire.InfoResponse),
            control + "ListWorkers": _unary(self._workers, wire.ListWorkersRequest, wire.ListWorkersResponse),
            control + "Solve": _unary(self._solve, wire.SolveRequest, wire.SolveResponse),
            control + "Status": _streamed(self._status, wire.StatusRequest, wire.StatusResponse),
            control + "Session": (
                self._session,
                Cardinality.STREAM_STREAM,
                wire.BytesMessage,
                wire.BytesMessage,
            ),
            control + "DiskUsage": _unary(self._usage, wire.DiskUsageRequest, wire.DiskUsageResponse),
            control + "Prune": _streamed(self._prune, wire.PruneRequest, wire.UsageRecord),
            bridge + "Ping": _unary(self._ping, wire.PingRequest, wire.PongResponse),
            bridge + "Solve": _unary(self._frontend, wire.FrontendSolveRequest, wire.FrontendSolveResponse),
            bridge + "Evaluate": _unary(self._evaluate, wire.EvaluateRequest, wire.EvaluateResponse),
            bridge + "Return": _unary(self._return, wire.ReturnRequest, wire.ReturnResponse),
            "/grpc.health.v1.Health/Check": _unary(
                self._health, wire.HealthCheckRequest, wire.HealthCheckResponse
            ),
        }

    # Control

    async def _info(self, request: Any, ref: str) -> Any:
        return wire.InfoResponse(buildkit_version=_version())

    async def _workers(self, request: Any, ref: str) -> Any:
        return wire.ListWorkersResponse(record=[self._worker()])

    def _worker(self) -> Any:
        platform = host_platform()
        gateway = self._engine.networks.find("bridge").gateway
        labels = {"org.mobyproject.buildkit.worker.executor": "insula"}
        if gateway:  # for --add-host NAME:host-gateway, which clients resolve
            labels["org.mobyproject.buildkit.worker.moby.host-gateway-ip"] = gateway
        return wire.WorkerRecord(
            id="insula",
            labels=labels,
            platforms=[
                wire.Platform(os=platform.os, architecture=platform.architecture, variant=platform.variant)
            ],
            buildkit_version=_version(),
        )

    async def _solve(self, request: Any, ref: str) -> Any:
        return wire.SolveResponse(exporter_response=await self.builds.solve(request))

    async def _status(self, request: Any) -> AsyncIterator[Any]:
        job = await self.builds.find(request.ref)
        async for message in job.progress.follow():
            yield message

    async def _session(self, stream: Stream[Any, Any]) -> None:
        """A session without a connection of its own: buildx shares a directory between several builds so."""
        metadata = stream.metadata
        if metadata is None or not (ident := str(metadata.get(SESSION_ID.lower(), ""))):
            raise GRPCError(Status.INVALID_ARGUMENT, f"{SESSION_ID}: a session needs a name")
        offered = frozenset(str(path) for path in metadata.getall(SESSION_METHOD.lower(), ()))
        channel = Calling()
        tunnel = Tunnel(channel.protocol)

        async def send() -> None:
            while data := await tunnel.written():
                await stream.send_message(wire.BytesMessage(data=data))

        sending = asyncio.create_task(send())
        try:
            key = str(metadata.get(SESSION_KEY.lower(), ""))
            with self.builds.sessions.entered(Session(ident, offered, channel, key)):
                while (message := await stream.recv_message()) is not None:
                    channel.protocol.data_received(message.data)
        finally:
            channel.protocol.connection_lost(None)
            channel.close()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _usage(self, request: Any, ref: str) -> Any:
        chosen = parse_filters(request.filter)
        caches = await list_caches(self._engine)
        return wire.DiskUsageResponse(record=[_record_of(cache) for cache in caches if chosen(cache)])

    async def _prune(self, request: Any) -> AsyncIterator[Any]:
        for name in ("max_used_space", "min_free_space"):
            if getattr(request, name):
                raise UnsupportedField(name, "there is no such bound here", hint="--reserved-space")
        chosen = parse_filters(request.filter)
        filters = PruneFilters(
            until_ns=time.time_ns() - request.keep_duration if request.keep_duration else 0
        )
        keep = request.reserved_space
        for cache in await remove_caches(self._engine, filters, chosen=chosen, keep_bytes=keep):
            yield _record_of(cache)

    # LLBBridge

    async def _ping(self, request: Any, ref: str) -> Any:
        return wire.PongResponse(
            frontend_api_caps=[wire.APICap(id=name, enabled=True) for name in _FRONTEND_CAPS],
            llb_caps=[wire.APICap(id=name, enabled=True) for name in _BUILD_CAPS],
            workers=[self._worker()],
        )

    async def _frontend(self, request: Any, ref: str) -> Any:
        job = await self.builds.find(ref)
        result = await self.builds.result(
            job, request.frontend, request.frontend_opt, request.frontend_inputs, request.cache_imports
        )
        if request.evaluate:
            await self.builds.image(result)
        handle = wire.Ref(id=result, **{"def": definition_of(result)})
        return wire.FrontendSolveResponse(ref=result, result=wire.Result(ref=handle))

    async def _evaluate(self, request: Any, ref: str) -> Any:
        await self.builds.image(request.ref)
        return wire.EvaluateResponse()

    async def _return(self, request: Any, ref: str) -> Any:
        job = await self.builds.find(ref)
        if not job.returned.done():
            if request.HasField("error"):
                status = _status_of(request.error.code)
                job.returned.set_exception(GRPCError(status, request.error.message))
            else:
                job.returned.set_result(request.result.ref.id or request.result.ref_deprecated)
        return wire.ReturnResponse()

    async def _health(self, request: Any, ref: str) -> Any:
        return wire.HealthCheckResponse(status=wire.HealthCheckResponse.ServingStatus.SERVING)


def parse_filters(texts: Sequence[str]) -> Callable[[CacheRecord], bool]:
    """Which records are asked for.  In a text all must hold, and of several texts one.  Raises
    UnsupportedField."""
    wanted: list[list[tuple[str, str, str]]] = []
    for text in filter(None, texts):  # buildx sends an empty one for none
        parts = [_FILTER.fullmatch(part) for part in _PARTS.findall(text)]
        if not parts or not all(parts):
            raise UnsupportedField(
                "filter", f"{text[:128]!r} is not known", hint="id, type, description, until"
            )
        wanted.append([(part[1], part[2], part[3].strip('"')) for part in parts if part])

    def holds(cache: CacheRecord, field: str, how: str, value: str) -> bool:
        said = {"id": cache.ident, "type": cache.kind, "description": cache.description}[field]
        return value in said if how == "~=" or field == "id" else (said == value) == (how == "==")

    return lambda cache: not wanted or any(all(holds(cache, *one) for one in parts) for parts in wanted)


def _record_of(cache: CacheRecord) -> Any:
    return wire.UsageRecord(
        id=cache.ident,
        mutable=True,
        size=cache.size_bytes,
        created_at=_time(cache.created_ns),
        last_used_at=_time(cache.used_ns) if cache.uses else None,
        usage_count=cache.uses,
        description=cache.description,
        record_type=cache.kind,
    )


def _time(time_ns: int) -> Any:
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    return wire.Timestamp(seconds=seconds, nanos=nanos)


def _version() -> Any:
    return wire.BuildkitVersion(
        package="github.com/moby/buildkit", version=f"{_VERSION}+insula.{__version__}", revision=""
    )


def _status_of(code: int) -> Status:
    try:
        return Status(code)
    except ValueError:
        return Status.UNKNOWN


def _unary(answer: Callable[[Any, str], Awaitable[Any]], asks: type, gives: type) -> Any:
    @functools.wraps(answer)
    async def handle(stream: Stream[Any, Any]) -> None:
        request = await stream.recv_message()
        ref = stream.metadata.get("buildkit-controlapi-buildid", "") if stream.metadata else ""
        try:
            reply = await answer(request, str(ref))
        except (InsulaError, GRPCError, OSError) as error:
            raise _as_status(error) from None
        await stream.send_message(reply)

    return handle, Cardinality.UNARY_UNARY, asks, gives


def _streamed(answer: Callable[[Any], AsyncIterator[Any]], asks: type, gives: type) -> Any:
    @functools.wraps(answer)
    async def handle(stream: Stream[Any, Any]) -> None:
        request = await stream.recv_message()
        try:
            async for message in answer(request):
                await stream.send_message(message)
        except (InsulaError, GRPCError, OSError) as error:
            raise _as_status(error) from None

    return handle, Cardinality.UNARY_STREAM, asks, gives


def _as_status(error: Exception) -> GRPCError:
    if isinstance(error, GRPCError):
        return error
    if not isinstance(error, InsulaError):
        log.error("BuildKit's API", exc_info=error)
        return GRPCError(Status.INTERNAL, f"internal error: {type(error).__name__}: {error}")
    # of any other status, clients put the name before our words
    return GRPCError(Status.UNKNOWN, str(error), getattr(error, "details", None) or None)
