"""Named directories that outlive instances.  Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A local volume as stored; its data lies in `mountpoint`.  `anonymous`: made for an instance without
    a name given, and removed with it on request.  `created_ns`: ns since 1970."""

    name: str
    mountpoint: str
    created_ns: int
    labels: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    anonymous: bool = False
    driver: str = "local"
