"""A build's Dockerfile and contexts, out of its client's session or from an address.  Async.

Of a directory only what the target's stages copy is asked for, without what an ignore file leaves out.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing

from insula.api.buildkit.attributes import Frontend
from insula.api.buildkit.progress import Progress
from insula.api.buildkit.session import Session, Sessions
from insula.api.buildkit.transfer import receive
from insula.build.arguments import platform_arguments, with_origins
from insula.build.builder import renamed
from insula.build.context import Context, read_file, receive_context, unpack_context
from insula.dockerfile.patterns import parse_ignore
from insula.dockerfile.stages import Dockerfile, parse_dockerfile
from insula.errors import InvalidRequest


class Loading:
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
        self.dockerfile = b""
        """As far as it was found."""

    async def receive(self, place: str) -> Context:
        """`place` is an empty directory.  Raises InvalidRequest, DiskFull, RegistryFailed."""
        frontend = self._frontend
        ignored = given = None
        if frontend.dockerfile_directory:
            given, ignored = await self._dockerfile(f"{place}/dockerfile")
        if frontend.remote:
            return await self._remote(place, given)
        assert given is not None
        self.dockerfile = given
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
        others = self._frontend.options.renamed
        return any(self._has_triggers(renamed(others, name)) for name in images - stages - {"scratch"})

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
            context = await receive_context(
                pieces, place, dockerfile=frontend.dockerfile, remote=remote, given=given
            )
        self.dockerfile = context.dockerfile
        return context


async def _nothing() -> AsyncIterator[bytes]:
    for piece in tuple[bytes]():
        yield piece
