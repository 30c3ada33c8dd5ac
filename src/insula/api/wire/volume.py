"""Volumes in requests.  Pure."""

from __future__ import annotations

from msgspec import Struct, field


class VolumeCreateOptions(Struct):
    Name: str = ""
    Driver: str = ""
    DriverOpts: dict[str, str] = field(default_factory=dict)
    Labels: dict[str, str] = field(default_factory=dict)
    ClusterVolumeSpec: dict[str, object] | None = None
