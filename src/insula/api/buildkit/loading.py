"""A build's Dockerfile and contexts, out of its client's session or from an address.  Async.

Of a directory only what the target's stages copy is asked for, without what an ignore file leaves out, and of
that what is not here from an earlier build.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from insula.api.buildkit.attributes import Frontend
from insula.api.buildkit.progress import Progress
from insula.api.buildkit.session import Session, Sessions
from insula.api.buildkit.transfer import receive, receive_files
from insula.build.arguments import platform_arguments, with_origins
from insula.build.builder import renamed
from insula.build.context import Context, receive_context, unpack_context
from insula.build.contexts import Contexts, Lease, sift
from insula.dockerfile.patterns import parse_ignore
from insula.dockerfile.reader import MAX_BYTES
from insula.dockerfile.stages import Dockerfile, parse_dockerfile
from insula.errors import InvalidRequest
from insula.system import tar


class Loading:
    """A build's Dockerfile and contexts, out of the session or from an address.  To be closed when the build
    needs them no more."""

    def __init__(
        self,
        *,
        progress: Progress,
        session: Session,
        sessions: Sessions,
        contexts: Contexts,
        frontend: Frontend,
        has_triggers: Callable[[str], bool],
    ) -> None:
        self._progress = progress
        self._session = session
        self._sessions = sessions
        self._contexts = contexts
        self._frontend = frontend
        self._leases = AsyncExitStack()
        self._digests: dict[str, dict[str, str]] = {}
        self._has_triggers = has_triggers
        self.dockerfile = b""
        """As far as it was found."""

    async def receive(self, place: str) -> Context:
        """`place` is an empty directory.  Raises InvalidRequest, DiskFull, RegistryFailed."""
        frontend = self._frontend
        ignored = given = None
        if frontend.dockerfile_directory:
            given, ignored = await self._dockerfile()
        if frontend.remote:
            return await self._remote(place, given)
        assert given is not None
        self.dockerfile = given
        parsed = await asyncio.to_thread(parse_dockerfile, given)
        target = parsed.up_to(frontend.options.target)
        platform = platform_arguments(frontend.options.platform)
        target = await asyncio.to_thread(with_origins, target, frontend.options.build_args, platform)
        names, paths = target.used()
        if self._may_trigger(target):
            paths = None
        if paths is None or paths:
            if ignored is None:
                ignored = await self._ignored(frontend.context_directory)
            with self._progress.vertex("[internal] load build context") as vertex:
                directory = await self._tree(
                    vertex, frontend.context_directory, exclude=ignored, follow=sorted(paths or ())
                )
        else:
            directory = f"{place}/context"
            os.mkdir(directory, 0o755)
        named = {}
        for name, local in sorted(frontend.contexts.items()):
            if name in names or any("$" in one for one in names):
                exclude = await self._ignored(local)
                with self._progress.vertex(f"[context {name}] load from client") as vertex:
                    named[name] = await self._tree(vertex, local, exclude=exclude)
        return Context(directory, given, named, parsed, self._digests)

    async def aclose(self) -> None:
        """What is kept of the contexts goes back to where the next build finds it."""
        await self._leases.aclose()

    def _may_trigger(self, parsed: Dockerfile) -> bool:
        """Whether an image's ONBUILD may copy from the context."""
        stages = {stage.origin.name for stage in parsed.stages if stage.origin.name}
        images = {parsed.stages[number].origin.image for number in parsed.needed()}
        others = self._frontend.options.renamed
        return any(self._has_triggers(renamed(others, name)) for name in images - stages - {"scratch"})

    async def _dockerfile(self) -> tuple[bytes, tuple[str, ...] | None]:
        """It, and what the ignore file beside it has, if there is one."""
        name = self._frontend.dockerfile
        ignore = f"{name}.dockerignore"
        names = [name]
        if os.path.basename(name) == "Dockerfile":
            names.append(name[: -len("Dockerfile")] + "dockerfile")
        with self._progress.vertex(f"[internal] load build definition from {name}") as vertex:
            directory, what = self._frontend.dockerfile_directory, "transferring dockerfile:"
            found = await self._files(vertex, directory, [*names, ignore], what)
            if (there := next((one for one in names if one in found), None)) is None:
                raise InvalidRequest(f"failed to read dockerfile: open {name}: no such file or directory")
            for unknown in self._frontend.unknown:
                self._progress.warn(vertex, f"{unknown}: this builder does not know it; it has no effect")
        return found[there], _patterns(found[ignore]) if ignore in found else None

    async def _ignored(self, directory: str) -> tuple[str, ...]:
        name = ".dockerignore"
        with self._progress.vertex("[internal] load .dockerignore") as vertex:
            found = await self._files(vertex, directory, [name], "transferring context:")
        return _patterns(found.get(name, b""))

    async def _files(self, vertex: str, directory: str, names: Sequence[str], what: str) -> dict[str, bytes]:
        count = _Count(self._progress, vertex, what)
        session = await self._session_of(directory)
        async with session.files(directory, follow=names) as stream:
            found = await receive_files(stream, count, names, most=MAX_BYTES)
        count.end()
        return found

    async def _tree(self, vertex: str, name: str, **patterns: Sequence[str]) -> str:
        """The client's directory of that name, on the host; as much of it as is wanted."""
        count = _Count(self._progress, vertex, "transferring context:")
        session = await self._session_of(name)
        lease = await self._leases.enter_async_context(self._lease(session.shared_key, name))

        async def have(members: Sequence[tar.Member | None]) -> frozenset[int]:
            lease.size_bytes = sum(member.size for member in members if member is not None)
            found = await asyncio.to_thread(sift, lease.directory, members)
            if not found.whole:
                lease.digests.clear()
            return found.same

        async with session.files(name, **patterns) as stream:
            async with aclosing(receive(stream, count, have)) as pieces:
                if (first := await anext(pieces)) == tar.END:  # there is nothing that is not here
                    async for _ in pieces:
                        pass
                else:
                    await unpack_context(_joined(first, pieces), lease.directory)
        count.end()
        self._digests[lease.directory] = lease.digests
        return lease.directory

    @asynccontextmanager
    async def _lease(self, shared_key: str, name: str) -> AsyncIterator[Lease]:
        lease = await asyncio.to_thread(self._contexts.take, shared_key, name)
        try:
            yield lease
        finally:
            await asyncio.shield(asyncio.to_thread(self._contexts.give_back, lease))

    async def _session_of(self, directory: str) -> Session:
        if other := self._frontend.sessions.get(directory):
            return await self._sessions.find(other)
        return self._session

    async def _remote(self, place: str, given: bytes | None) -> Context:
        frontend, remote = self._frontend, self._frontend.remote
        with self._progress.vertex(f"[internal] load remote build context {remote}"):
            pieces: AsyncIterator[bytes] = _nothing()
            if self._session.is_upload(remote):
                pieces, remote = self._session.upload(remote), ""
            context = await receive_context(
                pieces, place, dockerfile=frontend.dockerfile, remote=remote, given=given
            )
        self.dockerfile = context.dockerfile
        return context


class _Count:
    """How much has come, told to who looks at that vertex."""

    def __init__(self, progress: Progress, vertex: str, what: str) -> None:
        self._tell = functools.partial(progress.count, vertex, what)
        self._size = 0

    def __call__(self, current: int) -> None:
        self._size = current
        self._tell(current)

    def end(self) -> None:
        self._tell(self._size, done=True)


def _patterns(ignore: bytes) -> tuple[str, ...]:
    return parse_ignore(ignore.decode("utf-8", "replace"))


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


async def _nothing() -> AsyncIterator[bytes]:
    for piece in tuple[bytes]():
        yield piece
