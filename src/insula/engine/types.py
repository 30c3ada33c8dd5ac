"""What the doors and the engine hand to each other.  Pure.

Records of what exists are in `model`; these are requests to the engine and its answers.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from insula.isolation.backend import BackendInfo
from insula.isolation.plan import LaunchPlan
from insula.model.files import PathStat
from insula.model.image import Image, ImageConfig
from insula.model.instance import Instance, MergedConfig
from insula.model.isolation import Isolation
from insula.model.mounts import MountKind
from insula.model.network import Endpoint, PortBinding
from insula.model.reports import PruneFilters, PruneReport
from insula.model.stream import Channel
from insula.model.volume import Volume

__all__ = [
    "BUILD_ANNOTATION",
    "Archive",
    "CommitSpec",
    "Copy",
    "Created",
    "DiskUsage",
    "EngineInfo",
    "ExecSpec",
    "ExecView",
    "Forked",
    "InstanceSizes",
    "InstanceView",
    "LogBatch",
    "LogQuery",
    "LogRecord",
    "MergedConfig",
    "MountView",
    "PruneFilters",
    "PruneReport",
    "SnapshotView",
    "VolumeUsage",
    "WaitCondition",
]


BUILD_ANNOTATION = "com.insula.build"
"""Of the instance of a build's RUN: which build it belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    id: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """One of a fork's: `error` says why it did not come to be, and `id` is "" then."""

    name: str
    id: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """`pause_ns`: for how long the source's workload stood still."""

    copies: tuple[Copy, ...]
    pause_ns: int
    warnings: tuple[str, ...] = ()


class WaitCondition(enum.StrEnum):
    """Docker's words.  NOT_RUNNING answers at once when it does not run; NEXT_EXIT never does."""

    NOT_RUNNING = "not-running"
    NEXT_EXIT = "next-exit"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """`since_ns` inclusive, `until_ns` exclusive, 0 is no limit.  `tail` None: everything."""

    since_ns: int = 0
    until_ns: int = 0
    tail: int | None = None
    follow: bool = False
    stdout: bool = True
    stderr: bool = True


class LogRecord(NamedTuple):
    """One line as the workload wrote it, its newline included if there was one."""

    time_ns: int
    channel: Channel
    data: bytes


@dataclass(slots=True, eq=False)
class LogBatch:
    """Records that are there at once.  Others may have the very same: `rendered` is for what was made of it,
    by how."""

    records: list[LogRecord]
    rendered: dict[Hashable, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecSpec:
    """`docker exec` as asked for.  `env` is added to the instance's; `user`, `cwd` "": the instance's own."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = ""
    user: str = ""
    tty: bool = False
    open_stdin: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    privileged: bool = False
    detach_keys: str = ""
    console_rows: int = 0
    console_cols: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecView:
    """`exit_code` None until it has ended, 126 when it could not be started.  `pid` 0 until it runs.
    `user`: the one that it really has."""

    id: str
    instance_id: str
    spec: ExecSpec
    running: bool = False
    exit_code: int | None = None
    pid: int = 0
    user: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountView:
    """One entry of inspect's `Mounts`.  `name` and `driver` are a volume's."""

    kind: MountKind
    source: str
    target: str
    name: str = ""
    driver: str = ""
    mode: str = ""
    writable: bool = True
    propagation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceView:
    """Everything that inspect and ps render.

    `image` is None when it was removed by force; `image_named`: the name that the user asked for is still
    its.  `plan` is that of the present or last run, None before the first.  `ports` are resolved (host ports
    filled in) and, like `endpoints`, empty while it does not run.  `links`: names of those it links to, and
    what it calls them; `link_names`: `parent/alias`, what others call it.  The paths are on the host.
    """

    instance: Instance
    image: Image | None
    config: MergedConfig
    image_named: bool = True
    plan: LaunchPlan | None = None
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[PortBinding, ...] = ()
    execs: tuple[ExecView, ...] = ()
    mounts: tuple[MountView, ...] = ()
    log_path: str = ""
    hosts_path: str = ""
    hostname_path: str = ""
    resolv_conf_path: str = ""
    merged_path: str = ""
    upper_path: str = ""
    work_path: str = ""
    lower_paths: tuple[str, ...] = ()
    image_disk: str = ""
    upper_disk: str = ""
    links: tuple[tuple[str, str], ...] = ()
    link_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSizes:
    """Bytes: what the instance wrote, and that plus its image."""

    written_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Archive:
    """`docker cp` out of an instance: what the path is, then the tar."""

    stat: PathStat
    pieces: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitSpec:
    """`config` is put over the instance's merged configuration, or (`whole`) replaces it; `changes` are
    Dockerfile lines on top of it.  `created_by` is for history ("": the instance's command), `created` is
    RFC 3339 ("": now).
    `through`: what the layer goes through on its way."""

    ref: str | None = None
    author: str = ""
    comment: str = ""
    pause: bool = True
    changes: tuple[str, ...] = ()
    config: ImageConfig | None = None
    whole: bool = False
    created_by: str = ""
    created: str = ""
    through: Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotView:
    """`size_bytes`: what it takes on the disk, its image aside."""

    name: str
    instance_id: str
    instance_name: str
    image: str
    memory_mib: int
    created_ns: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeUsage:
    volume: Volume
    size_bytes: int
    references: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUsage:
    """`docker system df`.  `sizes` by instance id; `shared_bytes` by image id, of layers that others have
    too.  `layers_bytes` counts each layer once."""

    layers_bytes: int
    images: tuple[Image, ...]
    instances: tuple[InstanceView, ...]
    shared_bytes: dict[str, int]
    sizes: dict[str, InstanceSizes]
    volumes: tuple[VolumeUsage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """`id` is stable for a data root."""

    id: str
    name: str
    running: int
    paused: int
    stopped: int
    images: int
    default_isolation: Isolation
    backends: tuple[BackendInfo, ...]
    data_root: str
    kernel: str
    operating_system: str
    architecture: str
    cpus: int
    memory_bytes: int
    started_ns: int
    labels: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default_factory=tuple)
