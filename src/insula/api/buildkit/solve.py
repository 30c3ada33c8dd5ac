"""Builds by their reference: what is asked for, the context out of the session, the image to its place.

Async.  A client asks in two ways: with the frontend's name in `Control.Solve`, or (buildx) with none there;
then it calls the gateway, solves, and returns the result that `Control.Solve` is to export.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from insula.api.buildkit import wire_pb2 as wire
from insula.api.buildkit.attributes import Frontend, image_names, parse_frontend
from insula.api.buildkit.progress import Progress, Steps
from insula.api.buildkit.session import Session, Sessions
from insula.api.buildkit.transfer import receive, send
from insula.build.arguments import platform_arguments, with_origins
from insula.build.builder import Builder
from insula.build.context import Context, read_file, receive_context, unpack_context
from insula.build.copying import Copying
from insula.dockerfile.patterns import parse_ignore
from insula.dockerfile.stages import Dockerfile, parse_dockerfile
from insula.errors import BuildStepFailed, InsulaError, InvalidRequest, UnsupportedField
from insula.model.image import Image
from insula.model.reference import parse_reference
from insula.system.files import disk_errors, remove_tree

if TYPE_CHECKING:
    from insula.engine.engine import Engine

FRONTEND = "dockerfile.v0"
_GATEWAY_WAIT_S = 3.0
_KEPT_S = 30.0  # a build that is done is known as long, for who asks for its status late
_NO_RUN = "only Dockerfiles are built here, not LLB"


class CouldNotSolve(InsulaError):
    """In BuildKit's words."""


@dataclass(slots=True)
class Job:
    """`results` are the frontend's requests by the reference that the gateway gave out for each."""

    ref: str
    session: str
    progress: Progress
    returned: asyncio.Future[str]
    results: dict[str, Frontend] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)


class Builds:
    """Of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.sessions = Sessions()
        self._jobs: dict[str, Job] = {}
        self._known = asyncio.Event()

    # by their reference

    @contextlib.asynccontextmanager
    async def job(self, request: Any) -> AsyncIterator[Job]:
        """A new one.  Raises InvalidRequest when there is one of that name."""
        if not request.ref:
            raise InvalidRequest("Ref: a build needs a reference")
        if request.ref in self._jobs:
            raise InvalidRequest(f"Ref: there is a build {request.ref} already")
        loop = asyncio.get_running_loop()
        job = Job(request.ref, request.session, Progress(request.ref), loop.create_future())
        self._jobs[job.ref] = job
        self._known.set()
        try:
            yield job
        finally:
            job.progress.close()
            loop.call_later(_KEPT_S, self._jobs.pop, job.ref, None)

    async def find(self, ref: str) -> Job:
        """Raises InvalidRequest when it does not come: requests overtake each other."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GATEWAY_WAIT_S):
                while ref not in self._jobs:
                    self._known.clear()
                    await self._known.wait()
        if ref not in self._jobs:
            raise InvalidRequest(f"no such job {ref}")
        return self._jobs[ref]

    # what a client asks for

    async def frontend(
        self,
        job: Job,
        name: str,
        attributes: Mapping[str, str],
        inputs: Mapping[str, Any],
        imports: Sequence[Any],
    ) -> Frontend:
        """Raises InvalidRequest, UnsupportedField."""
        if name == "gateway.v0":
            raise UnsupportedField(
                "Frontend", "frontends out of images are not run", hint="leave `# syntax=` to insula"
            )
        if name != FRONTEND or inputs:
            raise UnsupportedField("Frontend", _NO_RUN, hint=FRONTEND)
        session = await self.sessions.find(job.session)
        default = self._engine.settings.default_isolation
        return parse_frontend(attributes, client=session, default=default, imports=imports)

    async def solve(self, request: Any) -> dict[str, str]:
        """A whole build; what its client is told of the result.  Raises InsulaError."""
        async with self.job(request) as job:
            if request.definition.ByteSize():
                raise UnsupportedField("Definition", _NO_RUN)
            if request.frontend:
                imports = request.cache.imports
                frontend = await self.frontend(
                    job, request.frontend, request.frontend_attrs, request.frontend_inputs, imports
                )
                ref = self.result(job, frontend)
            else:
                ref = await job.returned
            if not ref:
                return {}
            image = await self.image(job, ref)
            answer: dict[str, str] = {}
            for number, exporter in enumerate(_exporters(request)):
                answer |= await self._export(job, image, exporter, number)
            return answer

    @staticmethod
    def result(job: Job, frontend: Frontend) -> str:
        """The reference of what a frontend will make."""
        ref = secrets.token_hex(12)
        job.results[ref] = frontend
        return ref

    async def image(self, job: Job, ref: str) -> Image:
        """What is behind a reference, built when it is first asked for."""
        if ref not in job.results:
            raise InvalidRequest(f"no such result {ref}")
        if ref not in job.images:
            job.images[ref] = await self._build(job, job.results[ref])
        return job.images[ref]

    # building

    async def _build(self, job: Job, frontend: Frontend) -> Image:
        session = await self.sessions.find(job.session)
        steps = Steps(job.progress)
        loading = _Loading(job.progress, session, self.sessions, frontend, self._has_triggers)
        builder = Builder(self._engine, frontend.options, steps, secrets.token_hex(8))
        try:
            image = await builder.build(loading.receive)
        except BuildStepFailed as error:
            message = f'process "{error.command}" did not complete successfully: exit code: {error.code}'
            steps.end(message)
            raise CouldNotSolve(message) from None
        except InsulaError as error:
            steps.end(str(error))
            raise
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
            remove_tree(place)
            remove_tree(mounts)


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


class _Loading:
    """A build's Dockerfile and contexts, out of the session or from an address."""

    def __init__(
        self,
        progress: Progress,
        session: Session,
        sessions: Sessions,
        frontend: Frontend,
        has_triggers: Callable[[str], bool],
    ) -> None:
        self._progress = progress
        self._session = session
        self._sessions = sessions
        self._frontend = frontend
        self._has_triggers = has_triggers

    async def receive(self, place: str) -> Context:
        """`place` is an empty directory.  Raises InvalidRequest, DiskFull, RegistryFailed."""
        frontend = self._frontend
        ignored = given = None
        if frontend.dockerfile_directory:
            given, ignored = await self._dockerfile(f"{place}/dockerfile")
        if frontend.remote:
            return await self._remote(place, given)
        assert given is not None
        parsed = await asyncio.to_thread(parse_dockerfile, given)
        parsed = parsed.up_to(frontend.options.target)
        platform = platform_arguments(frontend.options.platform)
        parsed = await asyncio.to_thread(with_origins, parsed, frontend.options.build_args, platform)
        names, paths = parsed.used()
        directory = f"{place}/context"
        os.mkdir(directory, 0o755)
        if self._may_trigger(parsed):
            paths = None
        if paths is None or paths:
            if ignored is None:
                ignored = await self._ignored(frontend.context_directory, f"{place}/ignore")
            with self._progress.vertex("[internal] load build context") as vertex:
                await self._fetch(
                    vertex, frontend.context_directory, directory, exclude=ignored, follow=sorted(paths or ())
                )
        named = {}
        for number, (name, local) in enumerate(sorted(frontend.contexts.items())):
            if name in names or any("$" in one for one in names):
                named[name] = f"{place}/named{number}"
                os.mkdir(named[name], 0o755)
                exclude = await self._ignored(local, f"{place}/ignore{number}")
                with self._progress.vertex(f"[context {name}] load from client") as vertex:
                    await self._fetch(vertex, local, named[name], exclude=exclude)
        return Context(directory, given, named)

    def _may_trigger(self, parsed: Dockerfile) -> bool:
        """Whether an image's ONBUILD may copy from the context."""
        stages = {stage.origin.name for stage in parsed.stages if stage.origin.name}
        images = {parsed.stages[number].origin.image for number in parsed.needed()}
        return any(self._has_triggers(name) for name in images - stages - {"scratch"})

    async def _dockerfile(self, place: str) -> tuple[bytes, tuple[str, ...] | None]:
        """It, and what the ignore file beside it has, if there is one."""
        name = self._frontend.dockerfile
        names = [name, f"{name}.dockerignore"]
        if os.path.basename(name) == "Dockerfile":
            names.append(name[: -len("Dockerfile")] + "dockerfile")
        os.mkdir(place, 0o755)
        with self._progress.vertex(f"[internal] load build definition from {name}") as vertex:
            await self._fetch(
                vertex,
                self._frontend.dockerfile_directory,
                place,
                include=names,
                what="transferring dockerfile:",
            )
            for one in (names[0], *names[2:]):
                if (text := read_file(place, one)) is not None:
                    break
            else:
                raise InvalidRequest(f"failed to read dockerfile: open {name}: no such file or directory")
            for unknown in self._frontend.unknown:
                self._progress.warn(vertex, f"{unknown}: this builder does not know it; it has no effect")
        ignore = read_file(place, names[1])
        return text, None if ignore is None else parse_ignore(ignore.decode("utf-8", "replace"))

    async def _ignored(self, directory: str, place: str) -> tuple[str, ...]:
        os.mkdir(place, 0o755)
        with self._progress.vertex("[internal] load .dockerignore") as vertex:
            await self._fetch(vertex, directory, place, include=[".dockerignore"])
        return parse_ignore((read_file(place, ".dockerignore") or b"").decode("utf-8", "replace"))

    async def _fetch(
        self,
        vertex: str,
        name: str,
        place: str,
        *,
        what: str = "transferring context:",
        **patterns: Sequence[str],
    ) -> None:
        size = 0

        def tell(current: int) -> None:
            nonlocal size
            size = current
            self._progress.count(vertex, what, current)

        session = self._session
        if other := self._frontend.sessions.get(name):
            session = await self._sessions.find(other)
        async with session.files(name, **patterns) as stream, aclosing(receive(stream, tell)) as pieces:
            await unpack_context(pieces, place)
        self._progress.count(vertex, what, size, done=True)

    async def _remote(self, place: str, given: bytes | None) -> Context:
        frontend, remote = self._frontend, self._frontend.remote
        with self._progress.vertex(f"[internal] load remote build context {remote}"):
            pieces: AsyncIterator[bytes] = _nothing()
            if self._session.is_upload(remote):
                pieces, remote = self._session.upload(remote), ""
            return await receive_context(
                pieces, place, dockerfile=frontend.dockerfile, remote=remote, given=given
            )


async def _nothing() -> AsyncIterator[bytes]:
    for piece in tuple[bytes]():
        yield piece
