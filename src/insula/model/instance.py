"""Instances: what a user asked for (`InstanceSpec`), what is known of it (`Instance`).  Pure.

The word *instance* covers both isolations; *container* is the Docker API's word for it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from insula.model.health import Health, HealthCheck
from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.mounts import MountSpec
from insula.model.network import NetworkSpec, PortBinding


class State(enum.StrEnum):
    """Docker's words.  `removing` is never stored: a half-done removal is finished at start."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    name: str = "no"
    maximum_retry_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    driver: str = "json-file"
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    host_path: str
    container_path: str
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """A create request, normalised: defaults of the daemon filled in, defaults of the image not.

    `command`, `entrypoint`, `user`, `working_dir` and `env` are what the *request* said (None or
    empty: take the image's; but an empty `entrypoint` that is not None is none at all).  The planner merges
    them with the image's configuration.
    """

    image: str
    isolation: Isolation

    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    user: str = ""
    groups: tuple[str, ...] = ()
    working_dir: str = ""
    hostname: str = ""
    domainname: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    stop_timeout_s: int | None = None
    health: HealthCheck | None = None
    init: bool | None = None

    tty: bool = False
    console_rows: int = 0
    console_cols: int = 0
    open_stdin: bool = False
    stdin_once: bool = False
    attach_stdin: bool = False
    attach_stdout: bool = True
    attach_stderr: bool = True

    limits: Limits = field(default_factory=Limits)
    mounts: tuple[MountSpec, ...] = ()
    volumes_from: tuple[str, ...] = ()

    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ()
    read_only_root: bool = False
    devices: tuple[Device, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    pid_mode: str = ""
    ipc_mode: str = ""
    uts_mode: str = ""
    cgroup_parent: str = ""
    cgroupns_mode: str = ""
    userns_mode: str = ""
    device_rules: tuple[str, ...] = ()
    """`c 1:3 rwm`: what may be opened besides `devices`, in the cgroup's own form."""
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None
    storage_opt: dict[str, str] = field(default_factory=dict)

    network_mode: str = "default"
    ports: tuple[PortBinding, ...] = ()
    publish_all: bool = False
    exposed_ports: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    mac_address: str = ""
    links: tuple[str, ...] = ()
    networks: tuple[NetworkSpec, ...] | None = None
    """What it is on, that of `network_mode` first; None: that one alone.  `network connect` changes it."""
    network_disabled: bool = False

    auto_remove: bool = False
    restart: RestartPolicy = RestartPolicy()
    log: LogConfig = LogConfig()

    asked_isolation: str = ""
    """The request's own word, when that was `default`: inspect repeats it."""
    volume_driver: str = ""
    on_build: tuple[str, ...] = ()
    inert: dict[str, int] = field(default_factory=dict)
    """Fields of the request that mean nothing on Linux, by their names: inspect repeats them."""
    empties: tuple[str, ...] = ()
    """Lists of the request that were there and empty; others were not there, for which inspect has null."""
    shell: tuple[str, ...] = ()
    runtime: str = ""
    """As asked for; inspect repeats it."""
    volumes: tuple[str, ...] | None = None
    """The paths of Config.Volumes as they were written, mounted over or not; None in records of before."""
    container_id_file: str = ""
    """The client's own; inspect repeats it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedConfig:
    """A request and its image's defaults, merged as Docker merges them, once, at create."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    hostname: str = ""
    stop_signal: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    health: HealthCheck | None = None
    shell: tuple[str, ...] = ()

    @property
    def args(self) -> tuple[str, ...]:
        return self.entrypoint + self.command


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How a workload ended.  `code` is 0–255 (128+n for signal n); `error` says what broke, if anything."""

    code: int
    finished_at_ns: int
    oom_killed: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What the engine knows of one instance; the record that the store keeps.  Times: ns since 1970, 0 never.

    `mounts` are all of them: the request's, those taken from other instances, the image's volumes; each
    volume with its name.  `volumes` are those names by mount target.  `health` None: nothing is probed.
    """

    id: str
    name: str
    spec: InstanceSpec
    image_id: str
    state: State
    created_ns: int
    started_ns: int = 0
    finished_ns: int = 0
    pid: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    restart_count: int = 0
    stopped_by_user: bool = False
    config: MergedConfig = MergedConfig()
    volumes: dict[str, str] = field(default_factory=dict)
    mounts: tuple[MountSpec, ...] = ()
    health: Health | None = None
    origin: dict[str, str] = field(default_factory=dict)
    """How its last start came to be, of an isolation that has more than one way (`TemplateKeeper.origin`)."""
