"""What a build is asked for, whom it can ask, and where it tells.  Pure (records and Protocols)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from insula.errors import InvalidRequest
from insula.model.credentials import Credentials
from insula.model.isolation import Isolation
from insula.model.limits import Limits


class Client(Protocol):
    """Who wants the build, and can be asked for what a step needs."""

    async def secret(self, ident: str) -> bytes | None:
        """For `RUN --mount=type=secret`; None when there is none of that name."""
        ...

    async def credentials(self, registry: str) -> Credentials | None: ...

    def ssh_agent(self, ident: str, path: str) -> AbstractAsyncContextManager[bool]:
        """While it is entered, a socket at `path` is the client's agent of that name.  False: it has none.
        Raises InvalidRequest when it cannot have any."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AllAtOnce:
    """A Client that has said everything with its request.  `registries` are by domain."""

    secrets: Mapping[str, bytes] = field(default_factory=dict)
    registries: Mapping[str, Credentials] = field(default_factory=dict)

    async def secret(self, ident: str) -> bytes | None:
        return self.secrets.get(ident)

    async def credentials(self, registry: str) -> Credentials | None:
        return self.registries.get(registry)

    def ssh_agent(self, ident: str, path: str) -> AbstractAsyncContextManager[bool]:
        raise InvalidRequest(
            "--mount=type=ssh needs a BuildKit session, which the classic build endpoint has not",
            hint="docker buildx build --ssh, or give the key as a secret: insula build --secret",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """`build_args`: None is a name without a value.  `tags` are checked references.  `renamed` are images to
    take for others (`--build-context NAME=docker-image://…`).  `buildkit`: as BuildKit does it where the
    classic builder does otherwise: stages that the target does not use are left out, a pattern may match
    nothing, and what is from scratch has `/` as its working directory."""

    isolation: Isolation
    tags: tuple[str, ...] = ()
    target: str = ""
    platform: str = ""
    build_args: Mapping[str, str | None] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    cache_from: tuple[str, ...] = ()
    no_cache: bool = False
    pull: bool = False
    squash: bool = False
    remove: bool = True
    force_remove: bool = False
    network_mode: str = ""
    extra_hosts: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    cgroup_parent: str = ""
    security_opt: tuple[str, ...] = ()
    client: Client = field(default_factory=AllAtOnce)
    renamed: Mapping[str, str] = field(default_factory=dict)
    buildkit: bool = False
    no_cache_stages: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepNote:
    """A step that begins: the `number`th of `total`, and in the BuildKit way of counting the `layer`th of
    `layers` in its stage (0: it makes none).  `stage` is the stage's name ("" when there is but one).
    `line` is where it begins in the Dockerfile; 0 for what is not in it."""

    number: int
    total: int
    code: str
    stage: str = ""
    layer: int = 0
    layers: int = 0
    line: int = 0


class Output(Protocol):
    """Called on the event loop.  Texts are as a terminal would show them."""

    def step(self, step: StepNote) -> None: ...
    def cached(self) -> None:
        """The step that began last was taken from the cache."""
        ...

    def note(self, text: str) -> None:
        """What the classic builder says between steps."""
        ...

    def log(self, text: str, *, error: bool) -> None:
        """What a step's program wrote; `error`: to its standard error."""
        ...

    def status(self, status: str, *, id: str = "", current: int = 0, total: int = 0) -> None: ...
    def aux(self, value: Mapping[str, Any]) -> None: ...

    async def room(self) -> None:
        """Wait until the client has taken most of what was said."""
        ...
