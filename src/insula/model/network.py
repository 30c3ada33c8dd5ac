"""Networks, and how an instance is attached to one.  Pure."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field

PREDEFINED = ("bridge", "host", "none")
ON_PARENT = ("macvlan", "ipvlan")
"""Drivers that put instances on a link of the host's, beside the host."""

DEFAULT_MTU = 1500
BRIDGE_OPTION = "com.docker.network.bridge.name"
ICC_OPTION = "com.docker.network.bridge.enable_icc"
MASQUERADE_OPTION = "com.docker.network.bridge.enable_ip_masquerade"
HOST_IP_OPTION = "com.docker.network.bridge.host_binding_ipv4"
MTU_OPTION = "com.docker.network.driver.mtu"
PARENT_OPTION = "parent"
MACVLAN_MODE_OPTION = "macvlan_mode"
IPVLAN_MODE_OPTION = "ipvlan_mode"
IPVLAN_FLAG_OPTION = "ipvlan_flag"
SYSCTLS_OPTION = "com.docker.network.endpoint.sysctls"  # of an endpoint
ANY_INTERFACE = "IFNAME"
_ANY = re.compile(rf"\.{ANY_INTERFACE}\.", re.IGNORECASE)

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_DUMMY_PREFIXES = {"macvlan": "dm-", "ipvlan": "di-"}  # Docker's
_DUMMY_DIGITS = 12  # with the prefix, what the kernel allows for a link's name


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
    ipam_options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network as stored.  `driver` is bridge, macvlan, ipvlan, host or null.

    `options` are those of its driver, checked.  `chosen_subnet`: by the user, who may then choose
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
    ipam_options: dict[str, str] = field(default_factory=dict)
    """Only kept and shown."""

    @property
    def carried6(self) -> AddressRange | None:
        """What instances have addresses of."""
        return self.range6 if self.ipv6 else None

    @property
    def predefined(self) -> bool:
        return self.name in PREDEFINED

    @property
    def on_parent(self) -> bool:
        """Its instances are on a link of the host's, beside the host; there is no bridge."""
        return self.driver in ON_PARENT

    @property
    def parent(self) -> str:
        """That link; where none was named, one of our own that leads nowhere, by Docker's name."""
        if not self.on_parent:
            return ""
        return self.options.get(PARENT_OPTION, "") or _DUMMY_PREFIXES[self.driver] + self.id[:_DUMMY_DIGITS]

    @property
    def has_own_parent(self) -> bool:
        return self.on_parent and not self.options.get(PARENT_OPTION)

    @property
    def leads_out(self) -> bool:
        return not self.internal and not self.has_own_parent

    @property
    def mode(self) -> str:
        """What the members of a macvlan or ipvlan network see of each other; "" for other drivers."""
        if self.driver == "macvlan":
            return self.options.get(MACVLAN_MODE_OPTION, "") or "bridge"
        return (self.options.get(IPVLAN_MODE_OPTION, "") or "l2") if self.driver == "ipvlan" else ""

    @property
    def flag(self) -> str:
        """The same, of ipvlan."""
        return (self.options.get(IPVLAN_FLAG_OPTION, "") or "bridge") if self.driver == "ipvlan" else ""

    @property
    def mtu(self) -> int:
        """As chosen, else the usual; on a parent, that one's, where nothing is chosen."""
        return int(self.options.get(MTU_OPTION, DEFAULT_MTU))

    @property
    def has_mtu(self) -> bool:
        return MTU_OPTION in self.options

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
    bridge; the guest sets address and routes from this record.  `driver` is the network's: with those of
    ON_PARENT the interface is no veth and `link` "", or `link` is a macvtap, which is on no bridge.

    `mac` is "" where it is the parent's (ipvlan).  `gateway` is "" on an internal network.  `default_route`:
    of all of the instance's endpoints, this one leads everywhere else, and with `default_route6` for IPv6.
    `more`: further addresses, with their prefix lengths.  `links`: what the instance calls others on this
    network, and their names.  `names` are those
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
    driver: str = "bridge"

    @property
    def on_parent(self) -> bool:
        return self.driver in ON_PARENT

    @property
    def is_named(self) -> bool:
        """Others on its network find it by its names."""
        return bool(self.resolver) or self.on_parent

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
