"""HostConfig and what is in it, in requests and in inspect.  Pure.

Defaults are dockerd's: what inspect shows when nothing was asked for.
"""

from __future__ import annotations

from msgspec import Struct, UnsetType, field

from insula.api.wire.numbers import Int64, Uint16


class PortBinding(Struct):
    HostIp: str = ""
    HostPort: str = ""


class RestartPolicy(Struct):
    Name: str = ""
    MaximumRetryCount: Int64 = 0


_RestartPolicy = RestartPolicy  # a field of that name hides the class


class LogConfig(Struct):
    Type: str = ""
    Config: dict[str, str] = field(default_factory=dict)


_LogConfig = LogConfig  # a field of that name hides the class


class DeviceMapping(Struct):
    PathOnHost: str = ""
    PathInContainer: str = ""
    CgroupPermissions: str = ""


class Ulimit(Struct):
    Name: str
    Hard: Int64 = 0
    Soft: Int64 = 0


class BindOptions(Struct, omit_defaults=True):
    Propagation: str = ""
    NonRecursive: bool = False
    CreateMountpoint: bool = False
    ReadOnlyNonRecursive: bool = False
    ReadOnlyForceRecursive: bool = False


_BindOptions = BindOptions  # a field of that name hides the class


class Driver(Struct, omit_defaults=True):
    Name: str = ""
    Options: dict[str, str] = field(default_factory=dict)


class VolumeOptions(Struct, omit_defaults=True):
    NoCopy: bool = False
    Labels: dict[str, str] = field(default_factory=dict)
    DriverConfig: Driver | None = None
    Subpath: str = ""


_VolumeOptions = VolumeOptions  # a field of that name hides the class


class TmpfsOptions(Struct, omit_defaults=True):
    SizeBytes: Int64 = 0
    Mode: Int64 = 0
    Options: list[list[str]] = field(default_factory=list)


_TmpfsOptions = TmpfsOptions  # a field of that name hides the class


class Mount(Struct, omit_defaults=True):
    Type: str = ""
    Source: str = ""
    Target: str = ""
    ReadOnly: bool = False
    Consistency: str = ""
    BindOptions: _BindOptions | None = None
    VolumeOptions: _VolumeOptions | None = None
    TmpfsOptions: _TmpfsOptions | None = None


class ThrottleDevice(Struct):
    Path: str = ""
    Rate: Int64 = 0


class WeightDevice(Struct):
    Path: str = ""
    Weight: Int64 = 0


class DeviceRequest(Struct):
    Driver: str = ""
    Count: Int64 = 0
    DeviceIDs: list[str] | None = None
    Capabilities: list[list[str]] | None = None
    Options: dict[str, str] | None = None


class Resources(Struct):
    """The part that `update` can change too."""

    CpuShares: Int64 = 0
    Memory: Int64 = 0
    NanoCpus: Int64 = 0
    CgroupParent: str = ""
    BlkioWeight: Int64 = 0
    BlkioWeightDevice: list[WeightDevice] | None = None
    BlkioDeviceReadBps: list[ThrottleDevice] | None = None
    BlkioDeviceWriteBps: list[ThrottleDevice] | None = None
    BlkioDeviceReadIOps: list[ThrottleDevice] | None = None
    BlkioDeviceWriteIOps: list[ThrottleDevice] | None = None
    CpuPeriod: Int64 = 0
    CpuQuota: Int64 = 0
    CpuRealtimePeriod: Int64 = 0
    CpuRealtimeRuntime: Int64 = 0
    CpusetCpus: str = ""
    CpusetMems: str = ""
    Devices: list[DeviceMapping] | None = None
    DeviceCgroupRules: list[str] | None = None
    DeviceRequests: list[DeviceRequest] | None = None
    KernelMemory: Int64 | UnsetType = 0
    KernelMemoryTCP: Int64 = 0
    MemoryReservation: Int64 = 0
    MemorySwap: Int64 = 0
    MemorySwappiness: Int64 | None = None
    OomKillDisable: bool | None = None
    PidsLimit: Int64 | None = None
    Ulimits: list[Ulimit] | None = None
    CpuCount: Int64 = 0
    CpuPercent: Int64 = 0
    IOMaximumIOps: Int64 = 0
    IOMaximumBandwidth: Int64 = 0


class HostConfig(Resources):
    Binds: list[str] | None = None
    ContainerIDFile: str = ""
    LogConfig: _LogConfig = field(default_factory=_LogConfig)
    NetworkMode: str = ""
    PortBindings: dict[str, list[PortBinding]] | None = None
    RestartPolicy: _RestartPolicy = field(default_factory=_RestartPolicy)
    AutoRemove: bool = False
    VolumeDriver: str = ""
    VolumesFrom: list[str] | None = None
    ConsoleSize: list[Uint16] = field(default_factory=lambda: [0, 0])
    Annotations: dict[str, str] = field(default_factory=dict)
    CapAdd: str | list[str] | None = None
    CapDrop: str | list[str] | None = None
    CgroupnsMode: str = ""
    Dns: list[str] | None = None
    DnsOptions: list[str] | None = None
    DnsSearch: list[str] | None = None
    ExtraHosts: list[str] | None = None
    GroupAdd: list[str] | None = None
    IpcMode: str = ""
    Cgroup: str = ""
    Links: list[str] | None = None
    OomScoreAdj: Int64 = 0
    PidMode: str = ""
    Privileged: bool = False
    PublishAllPorts: bool = False
    ReadonlyRootfs: bool = False
    SecurityOpt: list[str] | None = None
    StorageOpt: dict[str, str] | None = None
    Tmpfs: dict[str, str] | None = None
    UTSMode: str = ""
    UsernsMode: str = ""
    ShmSize: Int64 = 0
    Sysctls: dict[str, str] | None = None
    Runtime: str = ""
    Isolation: str = ""
    Mounts: list[Mount] | None = None
    MaskedPaths: list[str] | None = None
    ReadonlyPaths: list[str] | None = None
    Init: bool | None = None


HOST_CONFIG_OMITS = ("Annotations", "Init", "KernelMemoryTCP", "Mounts", "StorageOpt", "Sysctls", "Tmpfs")
"""Fields of HostConfig that an answer has only when they hold something."""


HOST_CONFIG_EMPTIES = (
    *("Binds", "BlkioDeviceReadBps", "BlkioDeviceReadIOps", "BlkioDeviceWriteBps", "BlkioDeviceWriteIOps"),
    *("BlkioWeightDevice", "CapAdd", "CapDrop", "DeviceCgroupRules", "DeviceRequests", "Devices", "Dns"),
    *("DnsOptions", "DnsSearch", "ExtraHosts", "GroupAdd", "PortBindings", "SecurityOpt", "Ulimits"),
    "VolumesFrom",
)
"""Fields of which an answer repeats how nothing was asked for: `[]`, or null when the request did not say."""


class UpdateConfig(Resources):
    """Absent is *leave it*: what a request does not name stays as it was."""

    RestartPolicy: _RestartPolicy | None = None


class ContainerUpdateResponse(Struct):
    Warnings: list[str]
