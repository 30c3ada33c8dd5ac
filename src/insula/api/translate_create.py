"""A create request to an InstanceSpec.  Pure.

Every field of the swagger is honoured, refused by name when it asks for something, or (two of them) has
no meaning here and is repeated by inspect: `ContainerIDFile` and `ArgsEscaped` are the client's own.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from insula.api.translate_health import parse_health
from insula.api.translate_limits import find_inert, parse_limits, refuse_unsupported, warn_inert
from insula.api.translate_mounts import parse_mounts
from insula.api.translate_network import (
    check_dns,
    check_extra_hosts,
    parse_bindings,
    parse_exposed,
    parse_links,
    parse_place,
)
from insula.api.versions import Version
from insula.api.wire import host_config as wire
from insula.api.wire.codec import find_strangers
from insula.api.wire.container_config import ContainerCreateRequest
from insula.errors import InvalidRequest, UnsupportedField
from insula.model.instance import Device, InstanceSpec, LogConfig, RestartPolicy
from insula.model.isolation import Isolation, parse_isolation
from insula.model.paths import clean_path

_MOST_STRANGERS = 16
_EMPTY: tuple[object, ...] = ([], {}, False)
_RUNTIMES = ("", "crun", "runc", "io.containerd.runc.v2")
_DEVICE_RULE = re.compile(r"[acb] (\d{1,10}|\*):(\d{1,10}|\*) [rwm]{1,3}")

_HOST_NOT_YET: tuple[tuple[str, tuple[object, ...], str], ...] = (
    ("Cgroup", ("",), "joining a cgroup is not supported"),
    ("UsernsMode", ("", "host"), "there are no user namespaces; a VM has all its users to itself"),
    ("CgroupnsMode", ("", "private", "host"), "invalid cgroup namespace mode"),
)


@dataclass(frozen=True, slots=True)
class CreateRequest:
    spec: InstanceSpec
    warnings: tuple[str, ...]


def parse_console_size(given: Sequence[int] | None) -> tuple[int, int]:
    """`[rows, columns]` of the client's terminal; (0, 0) when it has none.  Raises InvalidRequest."""
    if not given:
        return 0, 0
    if len(given) != 2 or not all(0 <= n <= 65535 for n in given):
        raise InvalidRequest("ConsoleSize: expected the rows and columns of a terminal")
    return given[0], given[1]


def parse_create(given: ContainerCreateRequest, default: Isolation, version: Version) -> CreateRequest:
    """Raises InvalidRequest, UnsupportedField; nothing has been made then."""
    host = given.HostConfig
    _refuse(given)
    warnings: list[str] = []
    mac = given.MacAddress
    if mac and version >= (1, 44):
        warnings.append(
            "The container-wide MacAddress field is now deprecated. "
            "It should be specified in EndpointsConfig instead."
        )
    inert = find_inert(host, version)
    warnings += warn_inert(inert)
    if given.ArgsEscaped:
        inert["ArgsEscaped"] = 1
    if host.CpuPercent:
        warnings.append("linux does not support CPU percent. Percent discarded.")  # moby's
    links = parse_links(host.Links or ())
    place = parse_place(host.NetworkMode, given.NetworkingConfig.EndpointsConfig, mac, version, links)
    isolation = parse_isolation(host.Isolation, default)
    security, privileged = _security(host)
    rows, cols = parse_console_size(host.ConsoleSize) if version >= (1, 42) else (0, 0)
    spec = InstanceSpec(
        image=given.Image,
        isolation=isolation,
        command=_words(given.Cmd) or None,
        entrypoint=_words(given.Entrypoint),
        env=tuple(given.Env or ()),
        user=given.User,
        groups=tuple(host.GroupAdd or ()),
        working_dir=clean_path(given.WorkingDir) if given.WorkingDir.startswith("/") else given.WorkingDir,
        hostname=given.Hostname,
        domainname=given.Domainname,
        labels=given.Labels or {},
        annotations=host.Annotations if version >= (1, 43) else {},
        stop_signal=given.StopSignal,
        stop_timeout_s=given.StopTimeout,
        health=parse_health(given.Healthcheck, version),
        init=host.Init,
        tty=given.Tty,
        console_rows=rows,
        console_cols=cols,
        open_stdin=given.OpenStdin,
        stdin_once=given.StdinOnce,
        attach_stdin=given.AttachStdin,
        attach_stdout=given.AttachStdout,
        attach_stderr=given.AttachStderr,
        limits=parse_limits(host, oom_score_adj=host.OomScoreAdj, shm_size=host.ShmSize),
        mounts=parse_mounts(
            host.Binds or (),
            host.Mounts or (),
            host.Tmpfs or {},
            given.Volumes or {},
            driver=host.VolumeDriver,
            version=version,
        ),
        volumes_from=tuple(host.VolumesFrom or ()),
        privileged=privileged,
        cap_add=_listed(host.CapAdd),
        cap_drop=_listed(host.CapDrop),
        security_opt=security,
        read_only_root=host.ReadonlyRootfs,
        devices=tuple(_device(d) for d in host.Devices or ()),
        device_rules=tuple(_device_rule(rule) for rule in host.DeviceCgroupRules or ()),
        masked_paths=None if host.MaskedPaths is None else tuple(host.MaskedPaths),
        readonly_paths=None if host.ReadonlyPaths is None else tuple(host.ReadonlyPaths),
        storage_opt=host.StorageOpt or {},
        sysctls=host.Sysctls or {},
        pid_mode=host.PidMode,
        ipc_mode=host.IpcMode or ("shareable" if version < (1, 40) else ""),
        uts_mode=host.UTSMode,
        cgroup_parent=host.CgroupParent,
        cgroupns_mode=host.CgroupnsMode,
        userns_mode=host.UsernsMode,
        network_mode=place.network_mode,
        ports=parse_bindings(host.PortBindings or {}),
        publish_all=host.PublishAllPorts,
        exposed_ports=parse_exposed(given.ExposedPorts),
        extra_hosts=check_extra_hosts(host.ExtraHosts or ()),
        dns=check_dns(host.Dns or ()),
        dns_search=tuple(host.DnsSearch or ()),
        dns_options=tuple(host.DnsOptions or ()),
        mac_address=place.mac_address,
        networks=place.networks,
        links=place.links,
        network_disabled=given.NetworkDisabled,
        auto_remove=host.AutoRemove and version >= (1, 25),  # before, the client removed it
        restart=parse_restart(host.RestartPolicy),
        log=_log(host.LogConfig),
        asked_isolation=host.Isolation if host.Isolation.lower() == "default" else "",
        volume_driver=host.VolumeDriver,
        on_build=tuple(given.OnBuild or ()),
        inert=inert,
        runtime=host.Runtime,
        empties=tuple(name for name in wire.HOST_CONFIG_EMPTIES if getattr(host, name) in _EMPTY),
        shell=tuple(given.Shell or ()),
        container_id_file=host.ContainerIDFile,
        volumes=tuple(given.Volumes or ()),
    )
    return CreateRequest(spec, tuple(warnings))


def _refuse(given: ContainerCreateRequest) -> None:
    """What cannot be honoured, by the field's name."""
    host = given.HostConfig
    if not given.Image:
        if not (given.Cmd or given.Entrypoint):
            raise InvalidRequest("no command specified")  # moby's, which makes one without an image
        raise InvalidRequest("invalid reference format: the request names no Image")
    refuse_unsupported(host, _HOST_NOT_YET)
    if host.DeviceRequests:
        wanted = host.DeviceRequests[0]
        groups = " ".join(f"[{' '.join(words)}]" for words in wanted.Capabilities or ())
        raise UnsupportedField(  # dockerd's words
            "HostConfig.DeviceRequests",
            f'could not select device driver "{wanted.Driver}" with capabilities: [{groups}]',
            hint="there are no device drivers here; --device gives a container a device",
        )
    for asked, what, instead in (
        (host.IOMaximumBandwidth, "bandwidth", "BlkioDeviceReadBps and BlkioDeviceWriteBps"),
        (host.IOMaximumIOps, "IOPs", "BlkioDeviceReadIOps and BlkioDeviceWriteIOps"),
    ):
        if asked:  # moby's words
            raise InvalidRequest(
                f"Invalid QoS settings: linux does not support configuration of maximum {what}",
                hint=f"{instead} limit a container",
            )
    if host.Runtime not in _RUNTIMES:
        raise InvalidRequest(
            f"unknown or invalid runtime name: {host.Runtime}", hint="--isolation process or vm"
        )
    if given.StopTimeout is not None and not -1 <= given.StopTimeout < 2**31:
        raise InvalidRequest(f"invalid StopTimeout: {given.StopTimeout}")


def parse_restart(given: wire.RestartPolicy) -> RestartPolicy:
    return RestartPolicy(name=given.Name or "no", maximum_retry_count=given.MaximumRetryCount)


def unknown_fields(raw: Mapping[str, object]) -> list[str]:
    """Warnings for fields that no version of the API has: dockerd drops them without a word."""
    found = itertools.islice(find_strangers(raw, ContainerCreateRequest), _MOST_STRANGERS)
    return [f"{name[:128]}: there is no such field; it has no effect" for name in found]


def _words(given: str | list[str] | None) -> tuple[str, ...] | None:
    """None means the image's.  Of an entrypoint the empty list, or one empty string, says *none*."""
    if given is None:
        return None
    return (given,) if isinstance(given, str) else tuple(given)


def _listed(given: str | list[str] | None) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


def _security(host: wire.HostConfig) -> tuple[tuple[str, ...], bool]:
    """As they are written: inspect repeats them, and clients compare (ansible)."""
    options = tuple(host.SecurityOpt or ())
    for option in options:
        name, _, value = (option if "=" in option else option.replace(":", "=", 1)).partition("=")
        if name == "seccomp" and value.startswith("{"):
            try:
                json.loads(value)
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(f"Decoding seccomp profile failed: {error}") from None
    for name, paths in (("MaskedPaths", host.MaskedPaths), ("ReadonlyPaths", host.ReadonlyPaths)):
        for path in paths or ():
            if not path.startswith("/") or "\0" in path:
                raise InvalidRequest(f"HostConfig.{name}: {path[:128]!r} is not an absolute path")
    return options, host.Privileged


def _device_rule(text: str) -> str:
    if not _DEVICE_RULE.fullmatch(text):
        raise InvalidRequest(f"invalid device cgroup rule format: '{text[:64]}'")
    return text


def _device(given: wire.DeviceMapping) -> Device:
    permissions = given.CgroupPermissions or "rwm"
    if not given.PathOnHost.startswith("/"):
        raise InvalidRequest(f"invalid device path: {given.PathOnHost[:128]!r} is not an absolute path")
    if not set(permissions) <= set("rwm"):
        raise InvalidRequest(f"invalid device mode: {permissions[:16]}")
    return Device(
        host_path=given.PathOnHost,
        container_path=given.PathInContainer or given.PathOnHost,
        permissions=permissions,
    )


def _log(given: wire.LogConfig) -> LogConfig:
    driver = given.Type or "json-file"
    if driver not in ("json-file", "local", "journald", "none"):
        raise InvalidRequest(f"logger: no log driver named '{driver}' is registered")  # dockerd's very words
    return LogConfig(driver=driver, options=given.Config)
