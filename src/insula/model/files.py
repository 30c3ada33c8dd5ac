"""Files inside an instance, as `docker cp` and `docker diff` see them.  Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PathStat:
    """`mode` is Go's os.FileMode (Docker's X-Docker-Container-Path-Stat carries that, not st_mode)."""

    name: str
    size: int
    mode: int
    mtime_ns: int
    link_target: str = ""


class ChangeKind(enum.IntEnum):
    MODIFIED = 0
    ADDED = 1
    DELETED = 2


@dataclass(frozen=True, slots=True)
class Change:
    path: str
    kind: ChangeKind
