"""Networks, and how an instance is attached to one.  Pure."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field

PREDEFINED = ("bridge", "host", "none")

DEFAULT_MTU = 1500
BRIDGE_OPTION = "com.docker.network.bridge.name"
ICC_OPTION = "com.docker.network.bridge.enable_icc"
MASQUERADE_OPTION = "com.docker.network.bridge.enable_ip_masquerade"
HOST_IP_OPTION = "com.docker.network.bridge.host_binding_ipv4"
MTU_OPTION = "com.docker.network.driver.mtu"
SYSCTLS_OPTION = "com.docker.network.endpoint.sysctls"  # of an endpoint
ANY_INTERFACE = "IFNAME"
_ANY = re.compile(rf"\.{ANY_INTERFACE}\.", re.IGNORECASE)

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")


class LinkKind(enum.StrEnum):
    """The host's end of an attachment: what a backend can plug into an instance."""

    VETH = "veth"
    TAP = "tap"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortBinding:
    """`-p`: one published port.  `host_ip` "" asks for every address, IPv4 and IPv6; of one that is published
    it is `0.0.0.0` or `::` then.  `host_port` 0 is *pick one*, and with `host_port_end` the first of this
    range that is free."""

    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""
    host_port: int = 0
    host_port_end: int = 0

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host_ip


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressRange:
    """What a network has of one family.  Of a request "" is: to be chosen.  `aux_addresses` are kept out, by
    name.  `chosen_subnet`: by the user."""

    subnet: str = ""
    gateway: str = ""
    ip_range: str = ""
    aux_addresses: dict[str, str] = field(default_factory=dict)
    chosen_subnet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRequest:
    """`network create`.  `subnet`, `gateway`, `ip_range` "": chosen; `aux_addresses`: kept out, by name.
    `range6`: what was said about IPv6, which only has an effect with `ipv6`.  `unique`: refused where another
    network has the name."""

    name: str
    driver: str = "bridge"
    subnet: str = ""
    gateway: str = ""
    ip_range: str = ""
    aux_addresses: dict[str, str] = field(default_factory=dict)
    internal: bool = False
    attachable: bool = False
    options: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    ipv6: bool = False
    range6: AddressRange | None = None
    unique: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network as stored.  `driver` is bridge, host or null.

    `options` are those of the bridge driver, checked.  `chosen_subnet`: by the user, who may then choose
    addresses in it, too.  `created`: RFC 3339.  `ipv6`: instances have an address of `range6` each; without,
    that is only kept and shown, as Docker's is.
    """

    id: str
    name: str
    driver: str
    bridge: str = ""
    subnet: str = ""
    gateway: str = ""
    internal: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    created: str = ""
    ip_range: str = ""
    aux_addresses: dict[str, str] = field(default_factory=dict)
    attachable: bool = False
    options: dict[str, str] = field(default_factory=dict)
    chosen_subnet: bool = False
    ipv6: bool = False
    range6: AddressRange | None = None

    @property
    def carried6(self) -> AddressRange | None:
        """What instances have addresses of."""
        return self.range6 if self.ipv6 else None

    @property
    def predefined(self) -> bool:
        return self.name in PREDEFINED

    @property
    def mtu(self) -> int:
        return int(self.options.get(MTU_OPTION, DEFAULT_MTU))

    @property
    def icc(self) -> bool:
        """Instances reach each other."""
        return is_true(self.options.get(ICC_OPTION, "true"))

    @property
    def masquerade(self) -> bool:
        """The way out has the host's address."""
        return is_true(self.options.get(MASQUERADE_OPTION, "true"))

    @property
    def host_ip(self) -> str:
        """Where ports are published that name no address."""
        return self.options.get(HOST_IP_OPTION, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """What an instance asks of one network.  `name` is as the user wrote it: name, id or prefix.
    `driver_opts` are only kept and shown, but for the sysctls of its interface.  `links`: `name:alias` each.
    `link_local`: further addresses, of the links' own ranges."""

    name: str
    aliases: tuple[str, ...] = ()
    ipv4_address: str = ""
    ipv6_address: str = ""
    link_local: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    mac_address: str = ""
    driver_opts: dict[str, str] = field(default_factory=dict)

    def sysctls(self, interface: str = ANY_INTERFACE) -> tuple[tuple[str, str], ...]:
        """(name, value) each, for an interface of this name.  The docker client says `ifname`."""
        given = filter(None, self.driver_opts.get(SYSCTLS_OPTION, "").split(","))
        pairs = (one.partition("=") for one in given)
        return tuple((_ANY.sub(f".{interface}.", name, count=1), value) for name, _, value in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an instance asks of its place on a network, as the network room takes it; "" and empty: whatever
    comes.  `more` and `links` as an `Endpoint`'s."""

    mac: str = ""
    address: str = ""
    address6: str = ""
    more: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


NOTHING_WANTED = Wanted()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An instance's place on a network, made and ready to be plugged in.

    VETH: `netns` is the path of a network namespace that already holds the interface, with
    addresses and routes set.  TAP: `link` is the tap device in the host's namespace, already on the
    bridge; the guest sets address and routes from this record.

    `gateway` is "" on an internal network.  `default_route`: of all of the instance's endpoints, this one
    leads everywhere else, and with `default_route6` for IPv6.  `more`: further addresses, with their prefix
    lengths.  `links`: what the instance calls others on this network, and their names.  `names` are those
    that the network's other instances find it by; `resolver` is who answers them, "" on the default bridge,
    which has no names; `dns` are the servers that the instance was given for all other names.
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
    mtu: int = DEFAULT_MTU
    address6: str = ""
    prefix_len6: int = 0
    gateway6: str = ""
    endpoint_id: str = ""
    default_route: bool = True
    names: tuple[str, ...] = ()
    resolver: str = ""
    dns: tuple[str, ...] = ()
    default_route6: bool = True
    more: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()

    @property
    def cidrs(self) -> tuple[str, ...]:
        """Every address that the interface has, as `address/prefix length`."""
        first = ((self.address, self.prefix_len), (self.address6, self.prefix_len6))
        return tuple(f"{address}/{length}" for address, length in first if address) + self.more

    @property
    def gateways(self) -> tuple[str, ...]:
        """Those that its interface has default routes through."""
        ways = ((self.gateway, self.default_route), (self.gateway6, self.default_route6))
        return tuple(gateway for gateway, leads_out in ways if gateway and leads_out)


def is_true(text: str) -> bool:
    """As Go's strconv.ParseBool, for what `is_bool` has let through."""
    return text in _TRUE


def is_bool(text: str) -> bool:
    return text in _TRUE or text in _FALSE
