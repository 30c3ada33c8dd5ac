"""nftables: one table of our own per daemon, and published ports as elements of its maps.  Synchronous.

`make_ruleset` and `make_element` are pure.  Nobody else's table is read or changed; that also means that
a `forward` policy of drop in another table (Docker sets one) still drops what ours lets pass.

How a published port is reached: from elsewhere, and from instances, through `prerouting`; from the host
itself, loopback included, through `output`.  Sources 127.0.0.0/8 and the subnet itself are masqueraded
on the way to the bridge, or the answers would not come back through the translation.
"""

from __future__ import annotations

import errno
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

PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
ANY_ADDRESS = ("", "0.0.0.0")

_ANYWHERE = "published"
_AT_ADDRESS = "published_at"

# (address of the instance, binding with its port decided)
Publication = tuple[str, PortBinding]


def table_name(bridge: str) -> str:
    """From the bridge's name, so that two daemons on one host do not share a table."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", bridge)
    return plain if plain.startswith("insula") else f"insula_{plain}"


def make_element(address: str, binding: PortBinding) -> Element:
    """The map element that publishes `binding` of the instance at `address`."""
    key = struct.pack(">B3xH2x", PROTOCOLS[binding.protocol], binding.host_port)
    value = socket.inet_aton(address) + struct.pack(">H2x", binding.container_port)
    if binding.host_ip in ANY_ADDRESS:
        return Element(_ANYWHERE, key, value)
    return Element(_AT_ADDRESS, socket.inet_aton(binding.host_ip) + key, value)


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


def make_ruleset(table: str, zones: Sequence[Zone], publications: Iterable[Publication] = ()) -> str:
    """The whole table as `nft -f` takes it; replaces what is there in one transaction."""
    table = f"inet {table}"
    anywhere: list[str] = []
    at_address: list[str] = []
    for address, binding in publications:
        to = f"{binding.protocol} . {binding.host_port} : {address} . {binding.container_port}"
        if binding.host_ip in ANY_ADDRESS:
            anywhere.append(to)
        else:
            at_address.append(f"{binding.host_ip} . {to}")
    return f"""\
add table {table}
delete table {table}
table {table} {{
  map {_ANYWHERE} {{
    type inet_proto . inet_service : ipv4_addr . inet_service
    {_elements(anywhere)}
  }}
  map {_AT_ADDRESS} {{
    type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
    {_elements(at_address)}
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
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    dnat ip to ip daddr . meta l4proto . th dport map @{_AT_ADDRESS}
    fib daddr type local dnat ip to meta l4proto . th dport map @{_ANYWHERE}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    {_each(zones, _sources)}
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
    hairpin = f'oifname "{zone.bridge}" ct status dnat ip saddr {{ 127.0.0.0/8, {zone.subnet} }} masquerade'
    if zone.internal or not zone.masquerade:
        return (hairpin,)
    return hairpin, f'oifname != "{zone.bridge}" ip saddr {zone.subnet} masquerade'


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
                add=[make_element(*each) for each in add],
                delete=[make_element(*each) for each in delete],
            )
        except NetlinkError as error:
            if error.errno in (errno.ENOENT, errno.EEXIST):
                return False
            raise Failure(f"nftables refused a published port: {error.strerror}") from error
        return True
