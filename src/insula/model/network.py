"""Networks, and how an instance is attached to one.  Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class LinkKind(enum.StrEnum):
    """The host's end of an attachment: what a backend can plug into an instance."""

    VETH = "veth"
    TAP = "tap"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortBinding:
    """`-p`: one published port.  `host_ip` "" is every address; `host_port` 0 is *pick one*."""

    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""
    host_port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network as stored.  `driver` is bridge, host or null."""

    id: str
    name: str
    driver: str
    bridge: str = ""
    subnet: str = ""
    gateway: str = ""
    internal: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    created: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An instance's place on a network, made and ready to be plugged in.

    VETH: `netns` is the path of a network namespace that already holds the interface, with
    addresses and routes set.  TAP: `link` is the tap device in the host's namespace, already on the
    bridge; the guest sets address and routes from this record.
    """

    network_id: str
    network_name: str
    kind: LinkKind
    link: str
    interface: str
    mac: str
    address: str
    prefix_len: int
    gateway: str
    netns: str = ""
    mtu: int = 1500
    address6: str = ""
    prefix_len6: int = 0
    gateway6: str = ""
    endpoint_id: str = ""
