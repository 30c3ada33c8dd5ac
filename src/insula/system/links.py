"""Network links, addresses and routes, as verbs over `netlink`.  Synchronous.

Functions named `*_message` make requests, so that several go to the kernel at once; the rest send.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from insula.system.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    Netlink,
    NetlinkError,
    attribute,
    attributes,
    nested,
    number,
    text,
)

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_NEWADDR = 20
RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26
RTM_DELNEIGH = 29

IFLA_ADDRESS = 1
IFLA_IFNAME = 3
IFLA_MTU = 4
IFLA_LINK = 5
IFLA_MASTER = 10
IFLA_LINKINFO = 18
IFLA_IFALIAS = 20
IFLA_AF_SPEC = 26
IFLA_NET_NS_FD = 28
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
IFLA_INFO_SLAVE_KIND = 4
IFLA_INFO_SLAVE_DATA = 5
_BRPORT_HAIRPIN = 4
_BRPORT_ISOLATED = 33
_INET6_ADDR_GEN_MODE = 8
_ADDR_GEN_NONE = 1
_VETH_INFO_PEER = 1

IFF_UP = 1
_TABLE_MAIN = 254
_IFA_F_NODAD = 0x02
_FAMILIES = (socket.AF_INET, socket.AF_INET6)

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxHiHBB")
_NDA_DST = 1

_QUIET = nested(
    IFLA_AF_SPEC, nested(socket.AF_INET6, attribute(_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_NONE])))
)


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    up: bool
    master: int
    kind: str
    mac: str
    mtu: int = 1500
    isolated: bool = False
    """A port of a bridge that exchanges nothing with the bridge's other isolated ports."""
    alias: str = ""
    """Text that anybody may have put on it."""


def open_route() -> Netlink:
    """In the network namespace of the calling thread."""
    return Netlink(NETLINK_ROUTE)


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def link_header(index: int = 0, *, up: bool = False) -> bytes:
    """What every request about a link begins with."""
    return _IFINFO.pack(socket.AF_UNSPEC, 0, index, IFF_UP if up else 0, IFF_UP if up else 0)


def bridge_message(name: str, mac: str) -> Message:
    """A bridge, up.  A MAC of its own: else it takes its lowest port's, and changes with it."""
    info = nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, "bridge"))
    body = link_header(up=True) + text(IFLA_IFNAME, name) + attribute(IFLA_ADDRESS, mac_bytes(mac)) + info
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def veth_messages(
    name: str,
    master: int,
    *,
    peer: str,
    peer_mac: str,
    peer_netns_fd: int,
    mtu: int,
    isolated: bool = False,
) -> tuple[Message, ...]:
    """A pair: our end is up and a port of bridge `master`, the other is down in another namespace
    (the kernel refuses to bring up a peer that is not paired yet)."""
    there = (
        link_header()
        + text(IFLA_IFNAME, peer)
        + attribute(IFLA_ADDRESS, mac_bytes(peer_mac))
        + number(IFLA_MTU, mtu)
        + number(IFLA_NET_NS_FD, peer_netns_fd)
    )
    info = nested(
        IFLA_LINKINFO,
        text(IFLA_INFO_KIND, "veth"),
        nested(IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, there)),
    )
    body = link_header() + text(IFLA_IFNAME, name) + number(IFLA_MTU, mtu) + info
    return (
        Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body),
        *port_messages(name, master, isolated=isolated),
    )


def port_messages(name: str, master: int, *, isolated: bool = False, mtu: int = 0) -> tuple[Message, ...]:
    """Make a link a port of a bridge, and up.  `mtu` 0: it keeps its own.

    Hairpin: where br_netfilter is loaded, an instance that connects to a port of the host that leads
    back to itself is sent back through its own port (Docker does the same without its proxy).  No IPv6
    address on our side: each would be solicited, announced and defended for nothing.
    """
    by_name = text(IFLA_IFNAME, name)
    hairpin = nested(
        IFLA_LINKINFO,
        text(IFLA_INFO_SLAVE_KIND, "bridge"),
        nested(
            IFLA_INFO_SLAVE_DATA,
            attribute(_BRPORT_HAIRPIN, b"\1"),
            attribute(_BRPORT_ISOLATED, bytes([isolated])),
        ),
    )
    size = number(IFLA_MTU, mtu) if mtu else b""
    return (
        Message(RTM_NEWLINK, 0, link_header() + by_name + size + number(IFLA_MASTER, master) + _QUIET),
        Message(RTM_NEWLINK, 0, link_header() + by_name + hairpin),
        Message(RTM_NEWLINK, 0, link_header(up=True) + by_name),
    )


def quiet_message(name: str) -> Message:
    """No IPv6 address of ours on it."""
    return Message(RTM_NEWLINK, 0, link_header() + text(IFLA_IFNAME, name) + _QUIET)


def mtu_message(index: int, mtu: int) -> Message:
    return Message(RTM_NEWLINK, 0, link_header(index) + number(IFLA_MTU, mtu))


def up_message(index: int) -> Message:
    return Message(RTM_NEWLINK, 0, link_header(index, up=True))


def address_message(index: int, address: str, prefix_len: int) -> Message:
    """IPv6: in use at once, without a search for others that have it; whoever hands out addresses knows."""
    raw = ipaddress.ip_address(address).packed
    if len(raw) != 4:
        body = _IFADDR.pack(socket.AF_INET6, prefix_len, _IFA_F_NODAD, 0, index)
        return Message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body + attribute(1, raw) + attribute(2, raw))
    everyone = ipaddress.IPv4Network((address, prefix_len), strict=False).broadcast_address.packed
    body = _IFADDR.pack(socket.AF_INET, prefix_len, 0, 0, index)
    return Message(
        RTM_NEWADDR,
        NLM_F_CREATE | NLM_F_EXCL,
        body + attribute(1, raw) + attribute(2, raw) + attribute(4, everyone),
    )


def default_route_message(gateway: str) -> Message:
    raw = ipaddress.ip_address(gateway).packed
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    # table main, protocol boot, scope universe, type unicast
    body = _RTMSG.pack(family, 0, 0, 0, 254, 3, 0, 1, 0)
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body + attribute(5, raw))


def drop_default_routes(route: Netlink) -> None:
    """Those of table main, of both families."""
    for family in _FAMILIES:
        for answer in list(route.dump(Message(RTM_GETROUTE, 0, _RTMSG.pack(family, *(0,) * 8)))):
            given, prefix_len, _, _, table, *_ = _RTMSG.unpack_from(answer.body)
            if (given, table, prefix_len) == (family, _TABLE_MAIN, 0):
                route.send(Message(RTM_DELROUTE, 0, answer.body))


def forget_neighbour(route: Netlink, index: int, address: str) -> bool:
    """The MAC of an address on a link, which is remembered for up to 45 s.  False if there was none."""
    raw = ipaddress.ip_address(address).packed
    family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
    try:
        route.send(
            Message(RTM_DELNEIGH, 0, _NDMSG.pack(family, 0, index, 0, 0, 0) + attribute(_NDA_DST, raw))
        )
    except NetlinkError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
        return False
    return True


def delete_link(route: Netlink, name: str) -> bool:
    """False if there was none."""
    try:
        route.send(Message(RTM_DELLINK, 0, link_header() + text(IFLA_IFNAME, name)))
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
        return False
    return True


def find_link(route: Netlink, name: str) -> Link | None:
    try:
        answer = route.ask(Message(RTM_GETLINK, 0, link_header() + text(IFLA_IFNAME, name)))
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
        return None
    return _link(answer.body)


def list_links(route: Netlink) -> Iterator[Link]:
    for answer in route.dump(Message(RTM_GETLINK, 0, link_header())):
        yield _link(answer.body)


def list_subnets(route: Netlink) -> Iterator[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, int]]:
    """Networks that the host has a route to, with the link's index; default routes and those that every link
    has are left out."""
    for family in _FAMILIES:
        for answer in route.dump(Message(RTM_GETROUTE, 0, _RTMSG.pack(family, *(0,) * 8))):
            given, prefix_len, _, _, table, *_ = _RTMSG.unpack_from(answer.body)
            found = attributes(answer.body[_RTMSG.size :])
            # a kernel without IPv6 answers with everything that it has
            if (given, table) != (family, _TABLE_MAIN) or not prefix_len or 1 not in found:
                continue
            index = struct.unpack("=i", found[4])[0] if 4 in found else 0
            if family == socket.AF_INET:
                yield ipaddress.IPv4Network((found[1], prefix_len), strict=False), index
            elif not (subnet := ipaddress.IPv6Network((found[1], prefix_len), strict=False)).is_link_local:
                yield subnet, index


def _link(body: bytes) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = attributes(body[_IFINFO.size :])
    info = attributes(found.get(IFLA_LINKINFO, b""))
    port = attributes(info.get(IFLA_INFO_SLAVE_DATA, b""))
    return Link(
        index=index,
        name=found[IFLA_IFNAME].rstrip(b"\0").decode(errors="replace"),
        up=bool(flags & IFF_UP),
        master=struct.unpack("=I", found[IFLA_MASTER])[0] if IFLA_MASTER in found else 0,
        kind=info.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace"),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=struct.unpack("=I", found[IFLA_MTU])[0] if IFLA_MTU in found else 0,
        isolated=port.get(_BRPORT_ISOLATED, b"\0") == b"\1",
        alias=found.get(IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace"),
    )
