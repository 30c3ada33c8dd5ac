"""Containers in answers: inspect, list, wait, top, changes.  Pure."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType, field

from insula.api.wire.container_config import ContainerConfig, EndpointSettings
from insula.api.wire.host_config import HostConfig, PortBinding

_HostConfig = HostConfig  # a field of that name hides the class


class HealthcheckResult(Struct):
    Start: str
    End: str
    ExitCode: int
    Output: str


class Health(Struct):
    Status: str
    FailingStreak: int
    Log: list[HealthcheckResult]


_Health = Health  # a field of that name hides the class


class ContainerState(Struct):
    Status: str
    Running: bool
    Paused: bool
    Restarting: bool
    OOMKilled: bool
    Dead: bool
    Pid: int
    ExitCode: int
    Error: str
    StartedAt: str
    FinishedAt: str
    Health: _Health | UnsetType = UNSET


class GraphDriverData(Struct):
    Name: str
    Data: dict[str, str] | None


class MountPoint(Struct, omit_defaults=True):
    Type: str = field()
    Source: str = field()
    Destination: str = field()
    Mode: str = field()
    RW: bool = field()
    Propagation: str = field()
    Name: str = ""
    Driver: str = ""


class NetworkSettings(Struct):
    Networks: dict[str, EndpointSettings]
    Ports: dict[str, list[PortBinding] | None]
    Bridge: str = ""
    SandboxID: str = ""
    SandboxKey: str = ""
    HairpinMode: bool = False
    LinkLocalIPv6Address: str = ""
    LinkLocalIPv6PrefixLen: int = 0
    SecondaryIPAddresses: None = None
    SecondaryIPv6Addresses: None = None
    EndpointID: str = ""
    Gateway: str = ""
    GlobalIPv6Address: str = ""
    GlobalIPv6PrefixLen: int = 0
    IPAddress: str = ""
    IPPrefixLen: int = 0
    IPv6Gateway: str = ""
    MacAddress: str = ""


_NetworkSettings = NetworkSettings


class ContainerInspectResponse(Struct):
    Id: str
    Created: str
    Path: str
    Args: list[str]
    State: ContainerState
    Image: str
    ResolvConfPath: str
    HostnamePath: str
    HostsPath: str
    LogPath: str
    Name: str
    RestartCount: int
    Driver: str
    Platform: str
    MountLabel: str
    ProcessLabel: str
    AppArmorProfile: str
    ExecIDs: list[str] | None
    HostConfig: _HostConfig
    GraphDriver: GraphDriverData
    Mounts: list[MountPoint]
    Config: ContainerConfig
    NetworkSettings: _NetworkSettings
    Insula: dict[str, str]
    """Ours: the isolation and, of a VM, how it came to be.  Docker's clients ignore what they do not know."""


class Port(Struct, omit_defaults=True):
    PrivatePort: int = field()
    Type: str = field()
    PublicPort: int = 0
    IP: str = ""


class HostConfigSummary(Struct):
    NetworkMode: str
    Isolation: str
    Annotations: dict[str, str] | UnsetType


class ContainerSummary(Struct):
    Id: str
    Names: list[str]
    Image: str
    ImageID: str
    Command: str
    Created: int
    Ports: list[Port]
    Labels: dict[str, str]
    State: str
    Status: str
    HostConfig: HostConfigSummary
    NetworkSettings: dict[str, dict[str, EndpointSettings]]
    Mounts: list[MountPoint]


class WaitExitError(Struct):
    Message: str


class ContainerWaitResponse(Struct, omit_defaults=True):
    StatusCode: int = field()
    Error: WaitExitError | None = None


class ContainerTopResponse(Struct):
    Titles: list[str]
    Processes: list[list[str]]


class FilesystemChange(Struct):
    Path: str
    Kind: int


class ExecConfig(Struct):
    AttachStdin: bool = False
    AttachStdout: bool = False
    AttachStderr: bool = False
    ConsoleSize: list[int] | None = None
    DetachKeys: str = ""
    Tty: bool = False
    Env: list[str] | None = None
    Cmd: list[str] | None = None
    Privileged: bool = False
    User: str = ""
    WorkingDir: str = ""
    Detach: bool = False


class ExecStartConfig(Struct):
    Detach: bool = False
    Tty: bool = False
    ConsoleSize: list[int] | None = None


class IDResponse(Struct):
    Id: str


class PruneReport(Struct):
    """Each resource names its list its own way."""

    SpaceReclaimed: int
    ContainersDeleted: list[str] | None = None
