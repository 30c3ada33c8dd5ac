"""Builds by their reference: what is asked for, the context out of the session, the image to its place.

Async.  A client asks in two ways: with the frontend's name in `Control.Solve`, or (buildx) with none there;
then it calls the gateway, solves, and returns the result that `Control.Solve` is to export.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from insula.api.buildkit import wire_pb2 as wire
from insula.api.buildkit.attributes import Frontend, image_names, parse_frontend
from insula.api.buildkit.loading import Loading
from insula.api.buildkit.progress import Progress, Steps
from insula.api.buildkit.session import Awaited, Session, Sessions
from insula.api.buildkit.transfer import send
from insula.build.builder import Builder
from insula.build.contexts import KEPT_NS, Contexts
from insula.build.copying import Copying
from insula.dockerfile.reader import read_dockerfile
from insula.errors import BuildStepFailed, InsulaError, InvalidRequest, UnsupportedField
from insula.model.image import Image
from insula.model.reference import parse_reference
from insula.system.files import disk_errors, remove_tree

if TYPE_CHECKING:
    from insula.engine.engine import Engine

FRONTEND = "dockerfile.v0"
_GATEWAY_WAIT_S = 3.0
_KEPT_S = 30.0  # a build that is done is known as long, for who asks for its status late
_TRIM_S = KEPT_NS / 1e9 + 60
_RESULT_S = 3600.0  # a result is known as long, for another build of the same client to begin with it
_HANDLE = "docker-image://insula.result/"
_NO_RUN = "only Dockerfiles are built here, not LLB"


class CouldNotSolve(InsulaError):
    """In BuildKit's words.  `details` are what clients show besides: BuildKit's types, by their URLs."""

    def __init__(self, message: str, details: Sequence[tuple[str, Any]] = ()) -> None:
        super().__init__(message)
        self.details = details


@dataclass(slots=True)
class Job:
    """`returned` is the reference of the result that its client wants exported; "" for none."""

    ref: str
    session: str
    progress: Progress
    returned: asyncio.Future[str]


@dataclass(frozen=True, slots=True)
class _Order:
    """What to make, and for whom.  `inputs` are results of other builds, by the names of the images that they
    stand for."""

    job: Job
    frontend: Frontend
    inputs: Mapping[str, str]


@dataclass(slots=True)
class _Result:
    """What a frontend makes, when it is first wanted.  Its order, and so the client, is forgotten then."""

    order: _Order | None
    image: Image | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Builds:
    """Of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.sessions = Sessions()
        self._contexts = Contexts(engine.settings)
        self._jobs = Awaited[Job]()
        self._trimming: asyncio.TimerHandle | None = None
        self._results: dict[str, _Result] = {}

    # by their reference

    @contextlib.asynccontextmanager
    async def job(self, request: Any) -> AsyncIterator[Job]:
        """A new one.  Raises InvalidRequest when there is one of that name."""
        if not request.ref:
            raise InvalidRequest("Ref: a build needs a reference")
        if request.ref in self._jobs.known:
            raise InvalidRequest(f"Ref: there is a build {request.ref} already")
        loop = asyncio.get_running_loop()
        job = Job(request.ref, request.session, Progress(request.ref), loop.create_future())
        self._jobs.add(job.ref, job)
        try:
            yield job
        finally:
            job.progress.close()
            loop.call_later(_KEPT_S, self._jobs.known.pop, job.ref, None)
            self._trim_later()
            for result in self._results.values():
                if result.order is not None and result.order.job is job:
                    result.order = None  # its client has gone

    def _trim_later(self) -> None:
        """What this build leaves may be the last that is used for long."""
        if self._trimming is not None:
            self._trimming.cancel()
        loop = asyncio.get_running_loop()
        self._trimming = loop.call_later(_TRIM_S, loop.run_in_executor, None, self._contexts.trim)

    async def find(self, ref: str) -> Job:
        """Raises InvalidRequest when it does not come."""
        if (job := await self._jobs.find(ref, _GATEWAY_WAIT_S)) is None:
            raise InvalidRequest(f"no such job {ref}")
        return job

    # what a client asks for

    async def result(
        self,
        job: Job,
        name: str,
        attributes: Mapping[str, str],
        inputs: Mapping[str, Any],
        imports: Sequence[Any],
    ) -> str:
        """The reference of what a frontend will make.  Raises InvalidRequest, UnsupportedField."""
        if name == "gateway.v0":
            raise UnsupportedField(
                "Frontend", "frontends out of images are not run", hint="leave `# syntax=` to insula"
            )
        if name != FRONTEND:
            raise UnsupportedField("Frontend", _NO_RUN, hint=FRONTEND)
        session = await self.sessions.find(job.session)
        default = self._engine.settings.default_isolation
        frontend = parse_frontend(attributes, client=session, default=default, imports=imports)
        known = {}
        for image, given in frontend.inputs.items():
            if given not in inputs:
                raise InvalidRequest(f"build context {image}: there is no input {given}")
            known[image] = result_of(inputs[given])
        ref = secrets.token_hex(12)
        self._results[ref] = _Result(_Order(job, frontend, known))
        asyncio.get_running_loop().call_later(_RESULT_S, self._results.pop, ref, None)
        return ref

    async def solve(self, request: Any) -> dict[str, str]:
        """A whole build; what its client is told of the result.  Raises InsulaError."""
        async with self.job(request) as job:
            if request.definition.ByteSize():
                raise UnsupportedField("Definition", _NO_RUN)
            if request.frontend:
                imports = request.cache.imports
                attributes, inputs = request.frontend_attrs, request.frontend_inputs
                ref = await self.result(job, request.frontend, attributes, inputs, imports)
            else:
                ref = await job.returned
            if not ref:
                return {}
            image = await self.image(ref)
            answer: dict[str, str] = {}
            for number, exporter in enumerate(_exporters(request)):
                answer |= await self._export(job, image, exporter, number)
            return answer

    async def image(self, ref: str) -> Image:
        """What is behind a reference.  Raises InsulaError."""
        result = self._results.get(ref)
        if result is None:
            raise InvalidRequest(f"no such result {ref}")
        async with result.lock:
            if result.image is None:
                if (order := result.order) is None:
                    raise InvalidRequest(f"no such result {ref}")
                others = {name: (await self.image(other)).id for name, other in order.inputs.items()}
                result.image = await self._build(order.job, order.frontend, others)
                result.order = None
            return result.image

    # building

    async def _build(self, job: Job, frontend: Frontend, others: Mapping[str, str]) -> Image:
        session = await self.sessions.find(job.session)
        steps = Steps(job.progress)
        options = replace(frontend.options, renamed={**frontend.options.renamed, **others})
        frontend = replace(frontend, options=options)
        loading = Loading(
            progress=job.progress,
            session=session,
            sessions=self.sessions,
            contexts=self._contexts,
            frontend=frontend,
            has_triggers=self._has_triggers,
        )
        builder = Builder(self._engine, options, steps, secrets.token_hex(8))
        try:
            async with aclosing(loading):
                image = await builder.build(loading.receive)
        except InsulaError as error:
            message = str(error)
            if isinstance(error, BuildStepFailed):
                command = json.dumps(error.command, ensure_ascii=False)  # as Go's %q
                message = f"process {command} did not complete successfully: exit code: {error.code}"
            steps.end(message)
            line = steps.line or line_in(message)
            raise CouldNotSolve(message, source_of(frontend.dockerfile, loading.dockerfile, line)) from error
        except BaseException:
            steps.end("context canceled")
            raise
        steps.end()
        return image

    def _has_triggers(self, name: str) -> bool:
        """Whether an image may say ONBUILD something about the context: it is not here, or it does."""
        try:
            return bool(self._engine.images.find(name).config.on_build)
        except InsulaError:
            return True

    # exporting

    async def _export(self, job: Job, image: Image, exporter: Any, number: int) -> dict[str, str]:
        attributes = dict(exporter.attrs)
        match exporter.type:
            case "moby" | "image":
                return await self._name(job, image, image_names(exporter.type, attributes), attributes)
            case "local":
                session = await self.sessions.find(job.session)
                with job.progress.vertex("exporting to client directory") as vertex:
                    async with self._tree(image) as path:
                        async with session.output(number, packets=True) as stream:
                            what = "copying files"
                            tell = functools.partial(job.progress.count, vertex, what)
                            await send(stream, path, tell)
                        job.progress.count(vertex, what, os.path.getsize(path), done=True)
                return {}
            case "tar":
                session = await self.sessions.find(job.session)
                with job.progress.vertex("exporting to client tarball") as vertex:
                    async with self._tree(image) as path:
                        await _send_tar(session, number, path, functools.partial(job.progress.count, vertex))
                return {}
            case other:
                raise UnsupportedField(
                    f"output type={other}",
                    "is not made here",
                    hint="image, local, tar; docker save for archives",
                )

    async def _name(
        self, job: Job, image: Image, names: Sequence[str], attributes: Mapping[str, str]
    ) -> dict[str, str]:
        progress = job.progress
        with progress.vertex("exporting to image") as vertex:
            progress.count(vertex, "exporting layers", 0, done=True)
            progress.count(vertex, f"writing image {image.id}", 0, done=True)
            for name in names:
                await self._engine.images.tag(image.id, name)
                progress.count(vertex, f"naming to {parse_reference(name).full}", 0, done=True)
            if attributes.get("push-by-digest", "") == "true":
                raise UnsupportedField("output push-by-digest", "is not done", hint="docker push")
        answer = {"containerimage.config.digest": image.id, "containerimage.digest": image.id}
        return answer | ({"image.name": ",".join(names)} if names else {})

    @contextlib.asynccontextmanager
    async def _tree(self, image: Image) -> AsyncIterator[str]:
        """The image's root as a tar on the disk.  Raises DiskFull."""
        ident = secrets.token_hex(8)
        settings = self._engine.settings
        place, mounts = f"{settings.data_root}/build/{ident}", f"{settings.exec_root}/build/{ident}"
        holder = f"export-{ident}"
        self._engine.hold_image(holder, image.id)
        try:
            for directory in (place, f"{place}/empty", mounts):
                os.makedirs(directory, mode=0o700)
            layers = tuple(self._engine.images.layers.path(d) for d in reversed(image.diff_ids))
            empty = (f"{place}/empty",)
            tree = Copying(mounts, empty[0]).difference(tuple(dict.fromkeys(layers)) or empty, empty)
            path = f"{place}/tree"
            with disk_errors("exporting an image"), open(path, "xb") as file:
                async with aclosing(tree):
                    async for piece in tree:
                        await asyncio.to_thread(file.write, piece)
            yield path
        finally:
            self._engine.hold_image(holder, None)
            for directory in (place, mounts):
                await asyncio.to_thread(remove_tree, directory)


def line_in(message: str) -> int:
    """Of the Dockerfile, where a complaint about it names one; 0 else."""
    found = re.search(r"\bparse error on line (\d+)", message)
    return int(found[1]) if found else 0


def source_of(name: str, dockerfile: bytes, line: int) -> list[tuple[str, Any]]:
    """The instruction that begins in that line, for clients to show with its neighbours (errdefs.Source)."""
    rows = dockerfile.split(b"\n")
    if not 0 < line <= len(rows):
        return []
    data = base64.b64encode(dockerfile).decode()
    place = {"start": {"line": line}, "end": {"line": _last_line(dockerfile, line)}}
    info = {"filename": name, "data": data, "language": "Dockerfile"}
    return [("github.com/moby/buildkit/errdefs.Source+json", {"info": info, "ranges": [place]})]


def _last_line(dockerfile: bytes, line: int) -> int:
    """Where the instruction that begins in `line` ends, empty lines and comments behind it left out."""
    with contextlib.suppress(InsulaError):
        begins = [found.number for found in read_dockerfile(dockerfile).lines]
        rows = dockerfile.split(b"\n")
        last = min((number for number in begins if number > line), default=len(rows) + 1) - 1
        while last > line and (not rows[last - 1].strip() or rows[last - 1].lstrip().startswith(b"#")):
            last -= 1
        return last
    return line


def definition_of(ref: str) -> Any:
    """A result as LLB, which clients hand back unread when another build is to begin with it."""
    source = wire.Op(source=wire.SourceOp(identifier=f"{_HANDLE}{ref}")).SerializeToString()
    last = wire.Op(inputs=[wire.Input(digest=_digest(source))]).SerializeToString()
    metadata = {_digest(each): wire.OpMetadata() for each in (source, last)}
    fields: dict[str, Any] = {"def": [source, last], "metadata": metadata}  # `def` is a word of Python's
    return wire.Definition(**fields)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def result_of(definition: Any) -> str:
    """The other way.  Raises UnsupportedField for any other LLB."""
    for data in getattr(definition, "def"):
        try:
            identifier = str(wire.Op.FromString(data).source.identifier)
        except DecodeError as error:
            raise InvalidRequest(f"FrontendInputs: no LLB: {error}") from None
        if identifier.startswith(_HANDLE):
            return identifier.removeprefix(_HANDLE)
    raise UnsupportedField("FrontendInputs", _NO_RUN)


def _exporters(request: Any) -> Sequence[Any]:
    if request.exporters or not request.exporter:
        return request.exporters  # type: ignore[no-any-return]
    return [wire.Exporter(type=request.exporter, attrs=request.exporter_attrs)]


async def _send_tar(session: Session, number: int, path: str, count: Any) -> None:
    async with session.output(number, packets=False) as stream:
        sent = 0
        with open(path, "rb") as file:
            while piece := await asyncio.to_thread(file.read, 1 << 18):
                await stream.send_message(wire.BytesMessage(data=piece))
                sent += len(piece)
                count("sending tarball", sent)
        await stream.end()
        while await stream.recv_message() is not None:
            pass
    count("sending tarball", sent, done=True)
