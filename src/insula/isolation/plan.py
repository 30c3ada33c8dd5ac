"""LaunchPlan: everything a backend needs to run one instance, decided.  Pure.

Immutable, JSON-able (through `model.codec`), free of API and store types.  Both backends consume the
same plan; what a backend cannot honour it refuses in `check`, naming the field.
"""

from __future__ import annotations

from dataclasses import dataclass

from insula.model.isolation import Isolation
from insula.model.limits import Limits
from insula.model.mounts import EtcFile, Mount
from insula.model.network import Endpoint
from insula.model.root import DirectoryRoot, DiskRoot


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A program to run.  `args` is never empty; `env` is complete but for HOME.

    `user` is as in Docker: `name`, `uid`, `name:group`, `uid:gid`; "" is root.  It is looked up in the
    instance's own /etc/passwd and /etc/group by the backend (only the backend sees the live root),
    which also sets HOME from there when `env` has none.  `groups` are added on top (`--group-add`).
    `cwd` is made, owned by the user, when it does not exist.
    """

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str = "/"
    user: str = ""
    groups: tuple[str, ...] = ()
    tty: bool = False
    console_rows: int = 0
    console_cols: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device node of the host given to a container.  `rules` are the cgroup permissions (`rwm`)."""

    host_path: str
    path: str
    rules: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """What the workload may do.  `capabilities` are CAP_ names, sorted: bounding, permitted and effective
    (ambient and inheritable stay empty, so a non-root user starts with none, as in Docker).

    `all_capabilities`: they are all that there are (less some), as far as the host has them.  `seccomp` is
    the profile as JSON text in the containers-common format, "" for unconfined.
    """

    capabilities: tuple[str, ...]
    seccomp: str
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    no_new_privileges: bool = False
    privileged: bool = False
    read_only_root: bool = False
    devices: tuple[Device, ...] = ()
    all_capabilities: bool = False
    device_rules: tuple[str, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Console:
    """Stdio of the main process.  `log_path` gets records in the CRI format (conmon's `k8s-file`):
    `2026-01-31T12:00:00.123456789Z stdout F text`; "" for `--log-driver none`.

    `stdin_once`: stdin reaches its end when the first attached client goes; never with a terminal, where
    people detach and come back.
    """

    open_stdin: bool = False
    stdin_once: bool = False
    log_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMachine:
    """The machine that a guest sees: what a template must match.  Memory in MiB."""

    vcpus: int
    memory_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """One instance, decided.  Exactly one of `directory` and `disk` is set; `machine` goes with `disk`.

    `state_dir` survives a reboot (data root), `run_dir` does not (exec root); both exist and belong
    to this instance alone.  `host_network` is `--network host`; no endpoints and not host: loopback only.
    `pid_mode`, `ipc_mode`: `container:ID` is that of another one, which runs.
    `joins_network`: it shares that of another instance, whose namespace is `netns`, or the host's.
    `init`: a small init is PID 1 and reaps (`--init`).  `host_keys`: of these types (`rsa`, `ed25519`, …) the
    machine gets new ssh host keys before its workload goes on, if it has any: others have those too.
    """

    id: str
    isolation: Isolation
    state_dir: str
    run_dir: str
    hostname: str
    process: Process
    console: Console
    limits: Limits
    security: Security
    domainname: str = ""
    directory: DirectoryRoot | None = None
    disk: DiskRoot | None = None
    machine: GuestMachine | None = None
    mounts: tuple[Mount, ...] = ()
    etc_files: tuple[EtcFile, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    host_network: bool = False
    netns: str = ""
    joins_network: bool = False
    init: bool = False
    cgroup_parent: str = ""
    cgroupns_mode: str = ""
    pid_mode: str = ""
    ipc_mode: str = ""
    uts_mode: str = ""
    host_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.directory is None) == (self.disk is None):
            raise ValueError("a plan has either a directory or a disk as its root")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecPlan:
    """A further program in a running instance (`docker exec`).

    `detach`: nobody reads its output, which goes nowhere; it outlives the daemon.
    """

    id: str
    process: Process
    privileged: bool = False
    open_stdin: bool = False
    detach: bool = False
