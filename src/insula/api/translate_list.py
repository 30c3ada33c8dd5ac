"""Instances as `docker ps` lists them, and the parts that inspect shows alike.  Pure."""

from __future__ import annotations

from insula.api.times import SECOND_NS, human_duration
from insula.api.translate_health import health_suffix
from insula.api.versions import NEWEST, Version
from insula.api.wire.codec import ABSENT
from insula.api.wire.container import ContainerSummary, HostConfigSummary, MountPoint, Port
from insula.api.wire.container_config import EndpointIPAMConfig, EndpointSettings
from insula.engine.planner import Attachment, attachment, names_on, wanted_networks
from insula.engine.types import InstanceView
from insula.model.instance import Instance, State
from insula.model.network import NetworkSpec


def render_summary(view: InstanceView, now_ns: int, version: Version = NEWEST) -> ContainerSummary:
    instance = view.instance
    spec = instance.spec
    return ContainerSummary(
        Id=instance.id,
        Names=[f"/{name}" for name in (instance.name, *view.link_names)],
        Image=spec.image if view.image_named else instance.image_id,
        ImageID=instance.image_id,
        Command=" ".join(_quoted(word) for word in view.config.args),
        Created=instance.created_ns // SECOND_NS,
        Ports=render_ports(view),
        Labels=view.config.labels,
        State=instance.state.value,
        Status=status_text(instance, now_ns),
        HostConfig=HostConfigSummary(
            NetworkMode=spec.network_mode,
            Isolation=spec.isolation.value,
            Annotations=spec.annotations if version >= (1, 46) else ABSENT,
        ),
        NetworkSettings={"Networks": render_networks(view)},
        Mounts=render_mounts(view),
    )


def status_text(instance: Instance, now_ns: int) -> str:
    """`Up 3 seconds`, `Exited (0) 2 minutes ago`: moby's State.String."""
    up = human_duration((now_ns - instance.started_ns) / SECOND_NS)
    ago = human_duration((now_ns - instance.finished_ns) / SECOND_NS)
    match instance.state:
        case State.PAUSED:
            return f"Up {up} (Paused)"
        case State.RESTARTING:
            return f"Restarting ({instance.exit_code}) {ago} ago"
        case State.RUNNING:
            return f"Up {up}{health_suffix(instance.health)}"
        case State.REMOVING:
            return "Removal In Progress"
        case State.DEAD:
            return "Dead"
        case State.CREATED:
            return "Created"
        case State.EXITED:
            return f"Exited ({instance.exit_code}) {ago} ago" if instance.finished_ns else ""


def render_ports(view: InstanceView) -> list[Port]:
    found = [
        Port(PrivatePort=p.container_port, Type=p.protocol, PublicPort=p.host_port, IP=p.host_ip or "0.0.0.0")
        for p in view.ports
    ]
    published = {(p.PrivatePort, p.Type) for p in found}
    if view.endpoints:
        for text in view.config.exposed_ports:
            number, _, protocol = text.partition("/")
            key = (int(number) if number.isdecimal() else 0, protocol or "tcp")
            if key[0] and key not in published:
                found.append(Port(PrivatePort=key[0], Type=key[1]))
    return found


def render_networks(view: InstanceView) -> dict[str, EndpointSettings]:
    """What it is attached to now, or would be when started."""
    spec, instance = view.instance.spec, view.instance
    if spec.network_disabled:
        return {}
    if attachment(spec)[0] in (Attachment.HOST, Attachment.NONE):
        return {spec.network_mode: EndpointSettings()}
    now = {called: e for e in view.endpoints for called in (e.network_name, e.network_id)}
    found = {}
    for wanted in wanted_networks(spec):
        settings = EndpointSettings(
            IPAMConfig=_ipam(wanted),
            Links=list(wanted.links) or None,
            Aliases=list(wanted.aliases) or None,
            MacAddress=wanted.mac_address,
            DriverOpts=wanted.driver_opts or None,
        )
        if wanted.name != "bridge":
            settings.DNSNames = list(
                names_on(wanted, name=instance.name, instance_id=instance.id, hostname=view.config.hostname)
            )
        if (e := now.get(wanted.name)) is not None:
            settings.MacAddress = e.mac
            settings.NetworkID = e.network_id
            settings.EndpointID = e.endpoint_id
            settings.Gateway = e.gateway
            settings.IPAddress = e.address
            settings.IPPrefixLen = e.prefix_len
            settings.IPv6Gateway = e.gateway6
            settings.GlobalIPv6Address = e.address6
            settings.GlobalIPv6PrefixLen = e.prefix_len6
        found[e.network_name if e is not None else wanted.name] = settings
    return found


def _ipam(wanted: NetworkSpec) -> EndpointIPAMConfig | None:
    config = EndpointIPAMConfig(
        IPv4Address=wanted.ipv4_address,
        IPv6Address=wanted.ipv6_address,
        LinkLocalIPs=list(wanted.link_local) or None,
    )
    return config if config != EndpointIPAMConfig() else None


def render_mounts(view: InstanceView) -> list[MountPoint]:
    return [
        MountPoint(
            Type=m.kind.value,
            Source=m.source,
            Destination=m.target,
            Mode=m.mode,
            RW=m.writable,
            Propagation=m.propagation,
            Name=m.name,
            Driver=m.driver,
        )
        for m in view.mounts
    ]


def _quoted(word: str) -> str:
    """moby quotes what has a space in it."""
    return f"'{word}'" if " " in word else word
