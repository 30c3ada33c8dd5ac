"""Telling a link who has an address now, for neighbours that still know who had it before.  Synchronous.

A gratuitous ARP request (RFC 5227, 1.1) or an unsolicited neighbour advertisement (RFC 4861, 7.2.6), as moby
sends them from 28 on.  They go out through a bridge, to all its ports; what the host itself remembers they do
not reach: `links.forget_neighbour` is for that.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable

_ETH_ARP, _ETH_IPV6 = 0x0806, 0x86DD
_EVERYBODY = b"\xff" * 6
_ALL_NODES, _ALL_NODES_MAC = ipaddress.IPv6Address("ff02::1").packed, bytes.fromhex("333300000001")
_ARP_REQUEST = 1
_ICMPV6, _ADVERTISEMENT, _OVERRIDE = 58, 136, 1 << 29
_TARGET_MAC = b"\x02\x01"  # option and length, in eight bytes


def announce(index: int, mac: str, addresses: Iterable[str]) -> None:
    """On the link `index`, that `mac` has the addresses.  Raises OSError."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as out:
        out.bind((socket.if_indextoname(index), 0))
        for address in addresses:
            out.send(frame(mac, address))


def frame(mac: str, address: str) -> bytes:
    """Pure."""
    raw, owner = ipaddress.ip_address(address).packed, bytes.fromhex(mac.replace(":", ""))
    if len(raw) == 4:
        fixed = struct.pack("!HHBBH", 1, 0x0800, 6, 4, _ARP_REQUEST)
        arp = fixed + owner + raw + bytes(6) + raw
        return _EVERYBODY + owner + struct.pack("!H", _ETH_ARP) + arp
    said = struct.pack("!II", 0, _OVERRIDE) + raw + _TARGET_MAC + owner
    said = struct.pack("!BBH", _ADVERTISEMENT, 0, _checksum(raw, said)) + said[4:]
    header = struct.pack("!IHBB", 6 << 28, len(said), _ICMPV6, 255) + raw + _ALL_NODES
    return _ALL_NODES_MAC + owner + struct.pack("!H", _ETH_IPV6) + header + said


def _checksum(source: bytes, rest: bytes) -> int:
    """Of an advertisement whose first four bytes (type, code, none yet) are left zero in `rest`."""
    pseudo = source + _ALL_NODES + struct.pack("!II", len(rest), _ICMPV6)
    data = pseudo + struct.pack("!BBH", _ADVERTISEMENT, 0, 0) + rest[4:]
    total: int = sum(word for (word,) in struct.iter_unpack("!H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
