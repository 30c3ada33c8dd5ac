"""What a build tells, as BuildKit's clients show it: vertices, with a beginning, an end, logs and counts.

Async.  All is kept until a client asks for it, and dropped when it was told: a build has one that listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from insula.api.buildkit import wire_pb2 as wire
from insula.build.options import StepNote

_MOST_HELD = 512  # messages
_LOG_LIMIT = 2 << 20  # bytes of a step that nobody listens to
_PAUSE_NS = 100_000_000  # between two counts of one thing
_ALIAS = re.compile(r"\s+as\s+\S+\s*$", re.IGNORECASE)


class Progress:
    """Of the build `ref`.  Called on the event loop."""

    def __init__(self, ref: str) -> None:
        self._ref = ref
        self._made = 0
        self._names: dict[str, tuple[str, wire.Timestamp]] = {}
        self._held: list[wire.StatusResponse] = []
        self._unheard = 0
        self._ended = False
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._listeners = 0
        self._last: dict[tuple[str, str], int] = {}

    # telling

    def begin(self, name: str, *, cached: bool = False) -> str:
        """A vertex, by the digest that the other methods take."""
        self._made += 1
        digest = "sha256:" + hashlib.sha256(f"{self._ref} {self._made}".encode()).hexdigest()
        self._names[digest] = (name, _now())
        self._vertex(digest, cached=cached)
        return digest

    def end(self, digest: str, *, cached: bool = False, error: str = "") -> None:
        if digest in self._names:
            self._vertex(digest, cached=cached, completed=_now(), error=error)
            del self._names[digest]

    @contextlib.contextmanager
    def vertex(self, name: str) -> Iterator[str]:
        """One that ends with the block, and says what went wrong in it."""
        digest = self.begin(name)
        try:
            yield digest
        except Exception as error:
            self.end(digest, error=str(error) or type(error).__name__)
            raise
        except BaseException:
            self.end(digest, error="context canceled")
            raise
        self.end(digest)

    def _vertex(self, digest: str, *, cached: bool, completed: Any = None, error: str = "") -> None:
        name, started = self._names[digest]
        vertex = wire.Vertex(
            digest=digest, name=name, cached=cached, started=started, completed=completed, error=error
        )
        self._tell(wire.StatusResponse(vertexes=[vertex]))

    def log(self, digest: str, text: bytes, *, error: bool = False) -> None:
        """Of a program in that step."""
        if not self._listeners:
            self._unheard += len(text)
            if self._unheard > _LOG_LIMIT:
                return
        entry = wire.VertexLog(vertex=digest, timestamp=_now(), stream=2 if error else 1, msg=text)
        self._tell(wire.StatusResponse(logs=[entry]))

    def count(self, digest: str, what: str, current: int, total: int = 0, *, done: bool = False) -> None:
        """How far something inside a step is; told a few times a second."""
        now = time.time_ns()
        if not done and now - self._last.get((digest, what), 0) < _PAUSE_NS:
            return
        first = (digest, what) not in self._last
        self._last[digest, what] = now
        status = wire.VertexStatus(
            id=what,
            vertex=digest,
            name=what,
            current=current,
            total=total,
            timestamp=_now(),
            started=_now() if first else None,
            completed=_now() if done else None,
        )
        self._tell(wire.StatusResponse(statuses=[status]))

    def warn(self, digest: str, text: str) -> None:
        warning = wire.VertexWarning(vertex=digest, level=1, short=text.encode())
        self._tell(wire.StatusResponse(warnings=[warning]))

    def _tell(self, message: wire.StatusResponse) -> None:
        self._held.append(message)
        self._arrived.set()

    async def room(self) -> None:
        """Until whoever listens has taken most of it."""
        while self._listeners and len(self._held) > _MOST_HELD:
            self._taken.clear()
            await self._taken.wait()

    def close(self) -> None:
        self._ended = True
        self._arrived.set()
        self._taken.set()

    # listening

    async def follow(self) -> AsyncIterator[wire.StatusResponse]:
        """Until the build has ended and all was told."""
        self._listeners += 1
        try:
            while self._held or not self._ended:
                if not self._held:
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                held, self._held = self._held, []
                self._taken.set()
                for message in held:
                    yield message
        finally:
            self._listeners -= 1
            self._taken.set()


def _now() -> wire.Timestamp:
    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    return wire.Timestamp(seconds=seconds, nanos=nanos)


class Steps:
    """The builder's Output (`build.options.Output`) as vertices: one for each step that makes a layer."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._now = ""
        self._cached = False
        self.line = 0
        """Where the latest step begins in the Dockerfile; 0 before the first."""

    def step(self, step: StepNote) -> None:
        self.end()
        self.line = step.line
        if step.layer:
            where = (
                f"{step.stage} {step.layer}/{step.layers}" if step.stage else f"{step.layer}/{step.layers}"
            )
            code = _ALIAS.sub("", step.code) if step.layer == 1 else step.code
            self._now = self._progress.begin(f"[{where}] {code}")

    def end(self, error: str = "") -> None:
        """The step that began last is done."""
        if self._now:
            self._progress.end(self._now, cached=self._cached and not error, error=error)
        self._now, self._cached = "", False

    def cached(self) -> None:
        self._cached = True

    def note(self, text: str) -> None:
        """The classic builder's words are not for these clients."""

    def log(self, text: str, *, error: bool) -> None:
        if self._now:
            self._progress.log(self._now, text.encode(), error=error)

    def status(self, status: str, *, id: str = "", current: int = 0, total: int = 0) -> None:
        if self._now and id:
            self._progress.count(
                self._now, f"{status} {id}", current, total, done=bool(total) and current >= total
            )

    def aux(self, value: Mapping[str, Any]) -> None:
        """Clients learn the image's id from the answer."""

    async def room(self) -> None:
        await self._progress.room()
