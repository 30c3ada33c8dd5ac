"""An instance as `docker inspect` shows it.  Pure, but for asking which cgroups the host has."""

from __future__ import annotations

from typing import TypeVar

from insula.api.times import format_time
from insula.api.translate_health import render_check, render_health
from insula.api.translate_list import render_mounts, render_networks
from insula.api.versions import NEWEST, Version
from insula.api.wire import host_config as host
from insula.api.wire.codec import ABSENT, without_empty
from insula.api.wire.container import (
    ContainerInspectResponse,
    ContainerState,
    GraphDriverData,
    NetworkSettings,
)
from insula.api.wire.container_config import CONFIG_OMITS, ContainerConfig
from insula.engine.types import InstanceView
from insula.model.ids import short_id
from insula.model.instance import Instance, InstanceSpec, State
from insula.model.isolation import default_cgroup_namespace
from insula.model.limits import Throttle
from insula.model.mounts import MountKind, MountSpec
from insula.model.network import PREDEFINED, PortBinding
from insula.security.paths import finalize_paths
from insula.system.cgroups import version_in_use


def render_inspect(view: InstanceView, version: Version = NEWEST) -> ContainerInspectResponse:
    instance, config = view.instance, view.config
    args = config.args
    return ContainerInspectResponse(
        Id=instance.id,
        Created=format_time(instance.created_ns),
        Path=args[0] if args else "",
        Args=list(args[1:]),
        State=render_state(instance),
        Image=instance.image_id,
        ResolvConfPath=view.resolv_conf_path,
        HostnamePath=view.hostname_path,
        HostsPath=view.hosts_path,
        LogPath=view.log_path,
        Name=f"/{instance.name}",
        RestartCount=instance.restart_count,
        Driver="overlay2" if not view.upper_disk else "erofs",
        Platform="linux",
        MountLabel="",
        ProcessLabel="",
        AppArmorProfile="",
        ExecIDs=[e.id for e in view.execs if e.exit_code is None] or None,
        HostConfig=render_host_config(view, version),
        GraphDriver=_graph_driver(view),
        Mounts=render_mounts(view),
        Config=render_config(view),
        NetworkSettings=_network_settings(view, version),
        Insula={"Isolation": view.instance.spec.isolation.value, **view.instance.origin},
    )


def render_state(instance: Instance) -> ContainerState:
    state = instance.state
    rendered = ContainerState(
        Status=state.value,
        Running=state in (State.RUNNING, State.PAUSED, State.RESTARTING),
        Paused=state is State.PAUSED,
        Restarting=state is State.RESTARTING,
        OOMKilled=instance.oom_killed,
        Dead=state is State.DEAD,
        Pid=instance.pid if state in (State.RUNNING, State.PAUSED) else 0,
        ExitCode=instance.exit_code,
        Error=instance.error,
        StartedAt=format_time(instance.started_ns),
        FinishedAt=format_time(instance.finished_ns),
    )
    if instance.health is not None:  # otherwise the field is absent
        rendered.Health = render_health(instance.health)
    return rendered


def render_config(view: InstanceView) -> ContainerConfig:
    spec, config = view.instance.spec, view.config
    volumes = [*config.volumes]
    if spec.volumes is None:  # made by an insula that did not keep how they were written
        asked = (m for m in spec.mounts if m.kind is MountKind.VOLUME and m.legacy)
        volumes += [m.target for m in asked if not (m.source or m.text)]
    no_entrypoint = spec.entrypoint is not None and not config.entrypoint
    rendered = ContainerConfig(
        Hostname=config.hostname,
        Domainname=spec.domainname,
        User=config.user,
        AttachStdin=spec.attach_stdin,
        AttachStdout=spec.attach_stdout,
        AttachStderr=spec.attach_stderr,
        ExposedPorts={_with_protocol(p): {} for p in (*config.exposed_ports, *_published(spec))},
        Tty=spec.tty,
        OpenStdin=spec.open_stdin,
        StdinOnce=spec.stdin_once,
        Env=list(config.env) or None,
        Cmd=list(config.command) or None,
        Healthcheck=render_check(config.health),
        Image=spec.image,
        Volumes={path: {} for path in volumes} or None,
        WorkingDir=config.working_dir,
        # to be told from null, with which another one like this would have the image's
        Entrypoint=[] if no_entrypoint else list(config.entrypoint) or None,
        NetworkDisabled=spec.network_disabled,
        MacAddress=_asked_mac(spec),
        OnBuild=list(spec.on_build) or None,
        Labels=config.labels,
        StopSignal=config.stop_signal,
        StopTimeout=spec.stop_timeout_s,
        Shell=list(config.shell) or None,
        ArgsEscaped=bool(spec.inert.get("ArgsEscaped")),
    )
    return without_empty(rendered, CONFIG_OMITS)


def render_host_config(view: InstanceView, version: Version = NEWEST) -> host.HostConfig:
    spec = view.instance.spec
    limits = spec.limits
    masked: tuple[str, ...] | None
    readonly: tuple[str, ...] | None
    masked, readonly = finalize_paths(
        spec.security_opt,
        privileged=spec.privileged,
        masked=spec.masked_paths,
        read_only=spec.readonly_paths,
    )
    if spec.privileged:  # null then, unless it says some: made again without, it would have the usual ones
        masked, readonly = spec.masked_paths, spec.readonly_paths
    rendered = host.HostConfig(
        CpuShares=limits.cpu_shares,
        Memory=limits.memory_bytes,
        NanoCpus=limits.nano_cpus,
        CgroupParent=spec.cgroup_parent,
        CpuPeriod=limits.cpu_period_us,
        CpuQuota=limits.cpu_quota_us,
        CpuRealtimePeriod=limits.cpu_rt_period_us,
        CpuRealtimeRuntime=limits.cpu_rt_runtime_us,
        KernelMemory=spec.inert.get("KernelMemory", 0) if version < (1, 42) else ABSENT,
        KernelMemoryTCP=spec.inert.get("KernelMemoryTCP", 0),
        CpusetCpus=limits.cpuset_cpus,
        CpusetMems=limits.cpuset_mems,
        Devices=[
            host.DeviceMapping(
                PathOnHost=d.host_path, PathInContainer=d.container_path, CgroupPermissions=d.permissions
            )
            for d in spec.devices
        ],
        DeviceCgroupRules=list(spec.device_rules) or None,
        BlkioWeight=limits.blkio_weight,
        BlkioWeightDevice=[
            host.WeightDevice(Path=t.path, Weight=t.value) for t in limits.throttles if t.what == "weight"
        ],
        BlkioDeviceReadBps=_rates(limits.throttles, "ReadBps"),
        BlkioDeviceWriteBps=_rates(limits.throttles, "WriteBps"),
        BlkioDeviceReadIOps=_rates(limits.throttles, "ReadIOps"),
        BlkioDeviceWriteIOps=_rates(limits.throttles, "WriteIOps"),
        MemorySwappiness=limits.memory_swappiness,
        MemoryReservation=limits.memory_reservation_bytes,
        MemorySwap=limits.memory_swap_bytes or 2 * limits.memory_bytes,
        OomKillDisable=limits.oom_kill_disable,
        PidsLimit=max(limits.pids, 0) if limits.pids else None,
        CpuCount=spec.inert.get("CpuCount", 0),
        Ulimits=[host.Ulimit(Name=u.name, Hard=u.hard, Soft=u.soft) for u in limits.ulimits],
        Binds=[_bind_text(m) for m in spec.mounts if _is_bind(m)] or None,
        LogConfig=host.LogConfig(Type=spec.log.driver, Config=spec.log.options),
        NetworkMode=spec.network_mode,
        PortBindings=_bindings(spec.ports),
        RestartPolicy=host.RestartPolicy(
            Name=spec.restart.name, MaximumRetryCount=spec.restart.maximum_retry_count
        ),
        AutoRemove=spec.auto_remove,
        ConsoleSize=[spec.console_rows, spec.console_cols],
        Annotations=spec.annotations,
        CapAdd=list(spec.cap_add) or None,
        CapDrop=list(spec.cap_drop) or None,
        CgroupnsMode=spec.cgroupns_mode or default_cgroup_namespace(spec.isolation, version_in_use()),
        Dns=list(spec.dns),
        DnsOptions=list(spec.dns_options),
        DnsSearch=list(spec.dns_search),
        ExtraHosts=list(spec.extra_hosts) or None,
        GroupAdd=list(spec.groups) or None,
        IpcMode=spec.ipc_mode or "private",
        OomScoreAdj=limits.oom_score_adj,
        PidMode=spec.pid_mode,
        Privileged=spec.privileged,
        PublishAllPorts=spec.publish_all,
        ReadonlyRootfs=spec.read_only_root,
        SecurityOpt=list(spec.security_opt) or None,
        Tmpfs={m.target: ",".join(m.options) for m in spec.mounts if _is_tmpfs_option(m)} or None,
        UTSMode=spec.uts_mode,
        UsernsMode=spec.userns_mode,
        StorageOpt=spec.storage_opt or None,
        VolumeDriver=spec.volume_driver or next((m.driver for m in spec.mounts if m.legacy and m.driver), ""),
        VolumesFrom=list(spec.volumes_from) or None,
        ShmSize=limits.shm_size_bytes,
        Sysctls=spec.sysctls or None,
        Runtime=spec.runtime or "runc",
        Isolation=spec.asked_isolation or spec.isolation.value,
        Links=[f"/{name}:/{view.instance.name}/{alias}" for name, alias in view.links] or None,
        Mounts=[_mount(m) for m in spec.mounts if not m.legacy] or None,
        MaskedPaths=None if masked is None else list(masked),
        ReadonlyPaths=None if readonly is None else list(readonly),
        Init=spec.init,
        ContainerIDFile=spec.container_id_file,
    )
    for name in host.HOST_CONFIG_EMPTIES:
        if not getattr(rendered, name) and name not in spec.empties:
            setattr(rendered, name, None)
        elif getattr(rendered, name) is None:
            setattr(rendered, name, [])
    return without_empty(rendered, host.HOST_CONFIG_OMITS)


def _asked_mac(spec: InstanceSpec) -> str:
    """In the place that it had until API 1.44, where moby shows it still."""
    shared = spec.network_mode in ("host", "none") or spec.network_mode.startswith("container:")
    named = next((n.mac_address for n in spec.networks or () if n.name == spec.network_mode), "")
    return "" if shared else named or spec.mac_address


def _rates(throttles: tuple[Throttle, ...], what: str) -> list[host.ThrottleDevice]:
    return [host.ThrottleDevice(Path=t.path, Rate=t.value) for t in throttles if t.what == what]


def _is_tmpfs_option(mount: MountSpec) -> bool:
    return mount.kind is MountKind.TMPFS and mount.legacy


def _is_bind(mount: MountSpec) -> bool:
    return mount.legacy and mount.kind is not MountKind.TMPFS and bool(mount.source or mount.text)


def _bind_text(mount: MountSpec) -> str:
    if mount.text:
        return mount.text
    options = [o for o in ("ro" if mount.read_only else "", mount.propagation) if o]
    options += ["nocopy"] if mount.no_copy else []
    return ":".join([mount.source, mount.target] + ([",".join(options)] if options else []))


def _mount(mount: MountSpec) -> host.Mount:
    return host.Mount(
        Type=mount.kind.value,
        Source=mount.source,
        Target=mount.target,
        ReadOnly=mount.read_only,
        Consistency=mount.consistency,
        BindOptions=_or_none(
            host.BindOptions(
                Propagation=mount.propagation,
                NonRecursive=mount.non_recursive,
                CreateMountpoint=mount.create_source,
                ReadOnlyNonRecursive=mount.read_only_above,
                ReadOnlyForceRecursive=mount.read_only_below,
            )
        ),
        VolumeOptions=_or_none(
            host.VolumeOptions(
                NoCopy=mount.no_copy,
                Labels=mount.labels,
                Subpath=mount.subpath,
                DriverConfig=_or_none(host.Driver(Name=mount.driver, Options=mount.driver_options)),
            )
        ),
        TmpfsOptions=_or_none(_tmpfs(mount.options)),
    )


def _tmpfs(words: tuple[str, ...]) -> host.TmpfsOptions:
    options = host.TmpfsOptions()
    for word in words:
        key, _, value = word.partition("=")
        if key == "size" and value.isdecimal():
            options.SizeBytes = int(value)
        elif key == "mode":
            options.Mode = int(value, 8)
        else:
            options.Options.append(word.split("=", 1))
    return options


T = TypeVar("T", host.BindOptions, host.VolumeOptions, host.TmpfsOptions, host.Driver)


def _or_none(options: T) -> T | None:
    """None when nothing was asked for."""
    return options if options != type(options)() else None


def _bindings(ports: tuple[PortBinding, ...]) -> dict[str, list[host.PortBinding]]:
    found: dict[str, list[host.PortBinding]] = {}
    for port in ports:
        found.setdefault(f"{port.container_port}/{port.protocol}", []).append(
            host.PortBinding(HostIp=port.host_ip, HostPort=_port_text(port))
        )
    return found


def _port_text(port: PortBinding) -> str:
    """As it was asked for."""
    if port.host_port_end:
        return f"{port.host_port}-{port.host_port_end}"
    return str(port.host_port) if port.host_port else ""


def _published(spec: InstanceSpec) -> tuple[str, ...]:
    return tuple(f"{p.container_port}/{p.protocol}" for p in spec.ports)


def _with_protocol(port: str) -> str:
    return port if "/" in port else f"{port}/tcp"


def _graph_driver(view: InstanceView) -> GraphDriverData:
    if view.upper_disk:
        return GraphDriverData(
            Name="erofs", Data={"ImageDisk": view.image_disk, "UpperDisk": view.upper_disk}
        )
    data = {
        "LowerDir": ":".join(view.lower_paths),
        "MergedDir": view.merged_path,
        "UpperDir": view.upper_path,
        "WorkDir": view.work_path,
    }
    return GraphDriverData(Name="overlay2", Data=data if view.upper_path else None)


def _network_settings(view: InstanceView, version: Version) -> NetworkSettings:
    """Until API 1.44 the aliases on networks of one's own include the short id and the host name."""
    networks = render_networks(view)
    if version < (1, 45):
        more = (short_id(view.instance.id), view.config.hostname)
        for name, endpoint in networks.items():
            if name not in PREDEFINED:
                known = dict.fromkeys((*(endpoint.Aliases or ()), *more))
                endpoint.Aliases = [alias for alias in known if alias]
    settings = NetworkSettings(Networks=networks, Ports=_live_ports(view))
    plan = view.plan
    if plan is not None and view.endpoints:
        settings.SandboxID = view.instance.id
        settings.SandboxKey = next((e.netns for e in view.endpoints if e.netns), plan.netns)
    if (main := networks.get("bridge")) is not None:
        for name in (
            "EndpointID", "Gateway", "GlobalIPv6Address", "GlobalIPv6PrefixLen", "IPAddress", "IPPrefixLen",
            "IPv6Gateway", "MacAddress",
        ):  # fmt: skip
            setattr(settings, name, getattr(main, name))
    return settings


def _live_ports(view: InstanceView) -> dict[str, list[host.PortBinding] | None]:
    """Resolved bindings while it runs; exposed and not published is null, as Docker's.  Of an instance whose
    way out is beside the host Docker shows nothing."""
    leading = [e for e in view.endpoints if e.gateway and e.default_route] or view.endpoints
    if not view.ports and all(e.on_parent for e in leading):
        return {}
    found: dict[str, list[host.PortBinding] | None] = {
        _with_protocol(p): None for p in view.config.exposed_ports
    }
    for port in view.ports:
        key = f"{port.container_port}/{port.protocol}"
        binding = host.PortBinding(HostIp=port.host_ip or "0.0.0.0", HostPort=str(port.host_port))
        bindings = found.get(key) or []
        found[key] = [*bindings, binding]
    return found
