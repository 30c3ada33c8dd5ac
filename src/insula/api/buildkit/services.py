"""The gRPC methods of Control, LLBBridge (the gateway) and Health.  Async.

An error of ours is BuildKit's status; what is not here is UNIMPLEMENTED, which clients ask about.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Stream

from insula import __version__
from insula.api.buildkit import wire_pb2 as wire
from insula.api.buildkit.connection import Calling, Methods, Served, Tunnel
from insula.api.buildkit.session import SESSION_ID, SESSION_METHOD, Session
from insula.api.buildkit.solve import Builds, definition_of
from insula.build.mounting import CACHE_LABEL
from insula.build.prune import prune_caches
from insula.errors import InsulaError, UnsupportedField
from insula.images.registry.manifests import host_platform
from insula.model.reports import PruneFilters

if TYPE_CHECKING:
    from insula.engine.engine import Engine

log = logging.getLogger(__name__)

_VERSION = "v0.17.3"  # of BuildKit, as the Docker that we say we are has it
_BY_ID = ("id==", "id~=")  # as buildx writes `--filter id=NAME`

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
            with self.builds.sessions.entered(Session(ident, offered, channel)):
                while (message := await stream.recv_message()) is not None:
                    channel.protocol.data_received(message.data)
        finally:
            channel.protocol.connection_lost(None)
            channel.close()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _usage(self, request: Any, ref: str) -> Any:
        return wire.DiskUsageResponse(record=[record async for record in self._records()])

    async def _records(self) -> AsyncIterator[Any]:
        """The caches of `RUN --mount=type=cache`: steps are images here, which have pages of their own."""
        for volume in self._engine.volumes.list():
            if ident := volume.labels.get(CACHE_LABEL):
                seconds, nanos = divmod(volume.created_ns, 1_000_000_000)
                yield wire.UsageRecord(
                    id=volume.name,
                    mutable=True,
                    size=await self._engine.volumes.size(volume.name),
                    created_at=wire.Timestamp(seconds=seconds, nanos=nanos),
                    description=f"cached mount {ident}",
                    record_type="exec.cachemount",
                )

    async def _prune(self, request: Any) -> AsyncIterator[Any]:
        for name in ("max_used_space", "min_free_space"):
            if getattr(request, name):
                raise UnsupportedField(name, "there is no such bound here", hint="--reserved-space")
        asked = [text for text in request.filter if text]  # buildx sends an empty one for none
        if strange := next((text for text in asked if not text.startswith(_BY_ID)), ""):
            raise UnsupportedField("filter", f"{strange[:128]!r} is not known", hint="id, until")
        before_ns = time.time_ns() - request.keep_duration if request.keep_duration else 0
        filters = PruneFilters(until_ns=before_ns)
        known = {record.id: record async for record in self._records()}
        parts = [text[len(_BY_ID[0]) :].strip('"') for text in asked]
        ids = [name for name in known if any(part in name for part in parts)]
        if asked and not ids:
            return
        keep = request.reserved_space
        report = await prune_caches(self._engine, filters, ids=ids, keep_bytes=keep)
        for name in report.deleted:
            if name in known:
                yield known[name]

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
