"""Named volumes as stored.  Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """`options` are the driver's (`--opt`), `created` an RFC 3339 time as Docker shows it.

    `anonymous`: made for an instance that named none; goes with `rm -v` and `volume prune`.
    """

    name: str
    driver: str = "local"
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    created: str = ""
    anonymous: bool = False
    driver: str = "local"
