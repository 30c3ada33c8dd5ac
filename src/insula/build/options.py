"""What a build is asked for, and where it tells.  Pure (a record and a Protocol)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from insula.model.credentials import Credentials
from insula.model.isolation import Isolation
from insula.model.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """`build_args`: None is a name without a value.  `tags` are checked references.  `credentials` are by
    registry.  `secrets` are for `RUN --mount=type=secret`.  `remote` is an address to fetch in the context's
    place."""

    isolation: Isolation
    dockerfile: str = "Dockerfile"
    remote: str = ""
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
    credentials: Mapping[str, Credentials] = field(default_factory=dict)
    secrets: Mapping[str, bytes] = field(default_factory=dict)


class Output(Protocol):
    """Called on the event loop.  `stream` is text as a terminal would show it."""

    def stream(self, text: str) -> None: ...
    def status(self, status: str, *, id: str = "", current: int = 0, total: int = 0) -> None: ...
    def aux(self, value: Mapping[str, Any]) -> None: ...

    async def room(self) -> None:
        """Wait until the client has taken most of what was said."""
        ...
