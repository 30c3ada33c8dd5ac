"""nftables: one table of our own per daemon, and published ports as elements of its maps.  Synchronous.

`make_ruleset` and `make_elements` are pure.  Nobody else's table is read or changed; that also means that
a `forward` policy of drop in another table (Docker sets one) still drops what ours lets pass.

How a published port is reached: from elsewhere, and from instances, through `prerouting`; from the host
itself, loopback included, through `output`.  Sources 127.0.0.0/8 and the subnet itself are masqueraded
on the way to the bridge, or the answers would not come back through the translation.

IPv6 is done alike but for what the kernel cannot translate: ::1, link-local sources, and from one family to
the other.  Those go to the socket that holds the port, and `relay` carries them on.  To keep an internal
network's instances from getting out that way, the sets `relayed` name these ports.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from insula.errors import Failure
from insula.model.network import PortBinding
from insula.system.netlink import Netlink, NetlinkError
from insula.system.nfnetlink import Element, change_elements, open_netfilter
from insula.system.run import need_program, run

PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
ANY_ADDRESS = ("", "0.0.0.0", "::")
LOOPBACK6 = "::1"

_ANYWHERE = "published"
_AT_ADDRESS = "published_at"
_ANYWHERE6 = "published6"
_AT_ADDRESS6 = "published6_at"
_RELAYED = "relayed"
_RELAYED_AT = "relayed_at"

_STAYS6 = "{ ::1, fe80::/10 }"

# (address of the instance, of either family, and a binding with its port decided)
Publication = tuple[str, PortBinding]


def table_name(bridge: str) -> str:
    """From the bridge's name, so that two daemons on one host do not share a table."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", bridge)
    return plain if plain.startswith("insula") else f"insula_{plain}"


def make_elements(address: str, binding: PortBinding) -> tuple[Element, ...]:
    """Those that publish `binding` of the instance at `address`."""
    key = struct.pack(">B3xH2x", PROTOCOLS[binding.protocol], binding.host_port)
    value = ipaddress.ip_address(address).packed + struct.pack(">H2x", binding.container_port)
    anywhere = binding.host_ip in ANY_ADDRESS
    if not anywhere:
        key = ipaddress.ip_address(binding.host_ip).packed + key
    if not binding.is_ipv6:
        return (Element(_ANYWHERE if anywhere else _AT_ADDRESS, key, value),)
    if binding.host_ip == LOOPBACK6:
        return ()
    relayed = Element(_RELAYED if anywhere else _RELAYED_AT, key, b"")
    if not is_translated(address, binding):
        return (relayed,) if binding.protocol != "sctp" else ()
    return (relayed, Element(_ANYWHERE6 if anywhere else _AT_ADDRESS6, key, value))


def is_translated(address: str, binding: PortBinding) -> bool:
    """The kernel leads `binding` to `address`, at least from most sources."""
    return (":" in address) == binding.is_ipv6 and binding.host_ip != LOOPBACK6


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """One bridge, as the rules see it.  `resolver`: the port at `gateway` that port 53 leads to, or 0."""

    bridge: str
    subnet: str
    gateway: str
    internal: bool = False
    icc: bool = True
    masquerade: bool = True
    resolver: int = 0
    subnet6: str = ""


def make_ruleset(table: str, zones: Sequence[Zone], publications: Iterable[Publication] = ()) -> str:
    """The whole table as `nft -f` takes it; replaces what is there in one transaction."""
    table = f"inet {table}"
    found: dict[str, list[str]] = {}
    for address, binding in publications:
        for element in make_elements(address, binding):
            anywhere = element.map in (_ANYWHERE, _ANYWHERE6, _RELAYED)
            # of these nft knows the first two by itself, others where /etc/protocols is there
            word = binding.protocol if binding.protocol in ("tcp", "udp") else PROTOCOLS[binding.protocol]
            port = f"{word} . {binding.host_port}"
            key = port if anywhere else f"{binding.host_ip} . {port}"
            value = f" : {address} . {binding.container_port}" if element.value else ""
            found.setdefault(element.map, []).append(key + value)
    return f"""\
add table {table}
delete table {table}
table {table} {{
  map {_ANYWHERE} {{
    type inet_proto . inet_service : ipv4_addr . inet_service
    {_elements(found.get(_ANYWHERE, ()))}
  }}
  map {_AT_ADDRESS} {{
    type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
    {_elements(found.get(_AT_ADDRESS, ()))}
  }}
  map {_ANYWHERE6} {{
    type inet_proto . inet_service : ipv6_addr . inet_service
    {_elements(found.get(_ANYWHERE6, ()))}
  }}
  map {_AT_ADDRESS6} {{
    type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service
    {_elements(found.get(_AT_ADDRESS6, ()))}
  }}
  set {_RELAYED} {{
    type inet_proto . inet_service
    {_elements(found.get(_RELAYED, ()))}
  }}
  set {_RELAYED_AT} {{
    type ipv6_addr . inet_proto . inet_service
    {_elements(found.get(_RELAYED_AT, ()))}
  }}
  chain guard {{
    type filter hook prerouting priority raw; policy accept;
    {_each(zones, _guard)}
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    {_each(zones, _names)}
    dnat ip to ip daddr . meta l4proto . th dport map @{_AT_ADDRESS}
    fib daddr type local dnat ip to meta l4proto . th dport map @{_ANYWHERE}
    ip6 saddr != fe80::/10 dnat ip6 to ip6 daddr . meta l4proto . th dport map @{_AT_ADDRESS6}
    ip6 saddr != fe80::/10 fib daddr type local dnat ip6 to meta l4proto . th dport map @{_ANYWHERE6}
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    dnat ip to ip daddr . meta l4proto . th dport map @{_AT_ADDRESS}
    fib daddr type local dnat ip to meta l4proto . th dport map @{_ANYWHERE}
    ip6 daddr {_STAYS6} return
    dnat ip6 to ip6 daddr . meta l4proto . th dport map @{_AT_ADDRESS6}
    fib daddr type local dnat ip6 to meta l4proto . th dport map @{_ANYWHERE6}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    {_each(zones, _sources)}
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    {_each([zone for zone in zones if zone.internal], _no_relay)}
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    {_each([zone for zone in zones if zone.internal], _islands)}
    {_each(zones, _passage)}
  }}
}}
"""


def _each(zones: Sequence[Zone], rules: Callable[[Zone], Sequence[str]]) -> str:
    return "\n    ".join(rule for zone in zones for rule in rules(zone))


def _guard(zone: Zone) -> Sequence[str]:
    return (
        f'iifname "{zone.bridge}" ip daddr 127.0.0.0/8 drop comment "route_localnet is for the host alone"',
    )


def _names(zone: Zone) -> Sequence[str]:
    """Before published ports: who publishes port 53 must not become everybody's name server."""
    if not zone.resolver:
        return ()
    at_gateway = f'iifname "{zone.bridge}" ip daddr {zone.gateway}'
    return (
        f"{at_gateway} meta l4proto {{ tcp, udp }} th dport 53 dnat ip to {zone.gateway}:{zone.resolver}",
    )


def _sources(zone: Zone) -> Sequence[str]:
    from_here = f'oifname "{zone.bridge}" ct status dnat'
    rules = [f"{from_here} ip saddr {{ 127.0.0.0/8, {zone.subnet} }} masquerade"]
    if zone.subnet6:
        rules.append(f"{from_here} ip6 saddr {zone.subnet6} masquerade")
    if not zone.internal and zone.masquerade:
        out = f'oifname != "{zone.bridge}"'
        rules.append(f"{out} ip saddr {zone.subnet} masquerade")
        if zone.subnet6:
            rules.append(f"{out} ip6 saddr {zone.subnet6} masquerade")
    return rules


def _no_relay(zone: Zone) -> Sequence[str]:
    inside = f'iifname "{zone.bridge}"'
    internal = 'comment "an internal network leads nowhere"'
    return (
        f"{inside} ip6 daddr . meta l4proto . th dport @{_RELAYED_AT} drop {internal}",
        f"{inside} meta nfproto ipv6 meta l4proto . th dport @{_RELAYED} drop {internal}",
    )


def _islands(zone: Zone) -> Sequence[str]:
    """First of all: not even a published port of another network is reached from an internal one."""
    internal = 'comment "an internal network leads nowhere"'
    return (
        f'iifname "{zone.bridge}" oifname != "{zone.bridge}" drop {internal}',
        f'oifname "{zone.bridge}" iifname != "{zone.bridge}" drop {internal}',
    )


def _passage(zone: Zone) -> Sequence[str]:
    """That networks do not reach each other follows: what comes in is an answer or was published."""
    among = (f'oifname "{zone.bridge}" iifname "{zone.bridge}" accept',) if zone.icc else ()
    return (
        *among,
        f'oifname "{zone.bridge}" ct state established,related accept',
        f'oifname "{zone.bridge}" ct status dnat accept',
        f'oifname "{zone.bridge}" drop comment "only published ports are reached from outside"',
    )


def _elements(items: Sequence[str]) -> str:
    return f"elements = {{ {', '.join(items)} }}" if items else ""


class Firewall:
    """The table of one daemon, named after its default bridge.  Every call is for the network namespace this
    was made in."""

    def __init__(self, bridge: str) -> None:
        self._table = table_name(bridge)
        self._netfilter: Netlink | None = None

    def close(self) -> None:
        if self._netfilter is not None:
            self._netfilter.close()
            self._netfilter = None

    def install(self, zones: Sequence[Zone], publications: Iterable[Publication]) -> None:
        """Write the whole table.  Raises ProgramMissing, ProgramFailed."""
        nft = need_program("nft")
        run([nft, "-f", "-"], stdin=make_ruleset(self._table, zones, publications).encode())

    def remove(self) -> None:
        table = f"inet {self._table}"
        run([need_program("nft"), "-f", "-"], stdin=f"add table {table}\ndelete table {table}\n".encode())

    def change(self, *, add: Sequence[Publication] = (), delete: Sequence[Publication] = ()) -> bool:
        """Publish and withdraw ports, all or none.  False: the table or an element is not there (somebody
        has flushed the rule set), so it must be installed again."""
        if self._netfilter is None:
            self._netfilter = open_netfilter()
        try:
            change_elements(
                self._netfilter,
                self._table,
                add=[element for each in add for element in make_elements(*each)],
                delete=[element for each in delete for element in make_elements(*each)],
            )
        except NetlinkError as error:
            if error.errno in (errno.ENOENT, errno.EEXIST):
                return False
            raise Failure(f"nftables refused a published port: {error.strerror}") from error
        return True
