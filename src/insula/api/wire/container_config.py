"""ContainerConfig, networking and the create request.  Pure."""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from insula.api.wire.host_config import HostConfig
from insula.api.wire.numbers import Int64

_HostConfig = HostConfig  # a field of that name hides the class
Object = dict[str, Any]  # Go's struct{}: `{}` is all that it can hold


class HealthConfig(Struct, omit_defaults=True):
    Test: list[str] = field(default_factory=list)
    Interval: Int64 = 0
    Timeout: Int64 = 0
    StartPeriod: Int64 = 0
    StartInterval: Int64 = 0
    Retries: Int64 = 0


class ContainerConfig(Struct):
    Hostname: str = ""
    Domainname: str = ""
    User: str = ""
    AttachStdin: bool = False
    AttachStdout: bool = False
    AttachStderr: bool = False
    ExposedPorts: dict[str, Object] = field(default_factory=dict)
    Tty: bool = False
    OpenStdin: bool = False
    StdinOnce: bool = False
    Env: list[str] | None = None
    Cmd: str | list[str] | None = None
    Healthcheck: HealthConfig | None = None
    ArgsEscaped: bool = False
    Image: str = ""
    Volumes: dict[str, Object] | None = None
    WorkingDir: str = ""
    Entrypoint: str | list[str] | None = None
    NetworkDisabled: bool = False
    MacAddress: str = ""
    OnBuild: list[str] | None = None
    Labels: dict[str, str] | None = None
    StopSignal: str = ""
    StopTimeout: Int64 | None = None
    Shell: list[str] | None = None


CONFIG_OMITS = (
    *("ArgsEscaped", "ExposedPorts", "Healthcheck", "MacAddress", "NetworkDisabled", "Shell", "StopSignal"),
    "StopTimeout",
)
"""Fields of ContainerConfig that an answer has only when they hold something."""


class EndpointIPAMConfig(Struct, omit_defaults=True):
    IPv4Address: str = ""
    IPv6Address: str = ""
    LinkLocalIPs: list[str] | None = None


class EndpointSettings(Struct):
    IPAMConfig: EndpointIPAMConfig | None = None
    Links: list[str] | None = None
    Aliases: list[str] | None = None
    MacAddress: str = ""
    DriverOpts: dict[str, str] | None = None
    NetworkID: str = ""
    EndpointID: str = ""
    Gateway: str = ""
    IPAddress: str = ""
    IPPrefixLen: Int64 = 0
    IPv6Gateway: str = ""
    GlobalIPv6Address: str = ""
    GlobalIPv6PrefixLen: Int64 = 0
    DNSNames: list[str] | None = None


class NetworkingConfig(Struct):
    EndpointsConfig: dict[str, EndpointSettings] = field(default_factory=dict)


_NetworkingConfig = NetworkingConfig


class ContainerCreateRequest(ContainerConfig):
    HostConfig: _HostConfig = field(default_factory=_HostConfig)
    NetworkingConfig: _NetworkingConfig = field(default_factory=_NetworkingConfig)


class ContainerCreateResponse(Struct):
    Id: str
    Warnings: list[str]
