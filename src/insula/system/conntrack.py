"""Forgetting flows of UDP and SCTP that the kernel still tracks.  Synchronous; looks at the whole table.

UDP has no end of connection: a flow that was seen before its port was published goes on unredirected, and
one redirected to an instance that is gone goes on to nobody, for as long as the client keeps sending
(moby deletes such entries, too).  An SCTP client that begins anew from its old port is in the same case.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from insula.system.netlink import Message, NetlinkError, attribute, attributes
from insula.system.nfnetlink import open_netfilter

_GET = (1 << 8) | 1
_DELETE = (1 << 8) | 2
_FAMILIES = tuple(struct.pack(">BBH", family, 0, 0) for family in (socket.AF_INET, socket.AF_INET6))
_ORIGINAL, _REPLY = 1, 2
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_NESTED = 0x8000
_PROTOCOLS = {socket.IPPROTO_UDP: "udp", socket.IPPROTO_SCTP: "sctp"}


@dataclass(frozen=True, slots=True)
class Flow:
    """Whom the first packet was sent to, and who answers: the same, unless it is redirected."""

    protocol: str
    destination: str
    port: int
    answers_from: str


def forget_flows(wanted: Callable[[Flow], bool]) -> int:
    """Drop the flows for which `wanted` says yes; returns how many."""
    with open_netfilter() as netfilter:
        doomed: list[tuple[bytes, bytes]] = []
        for family in _FAMILIES:
            for answer in netfilter.dump(Message(_GET, 0, family)):
                found = attributes(answer.body[4:])
                flow = _flow(found.get(_ORIGINAL, b""), found.get(_REPLY, b""))
                if flow is not None and wanted(flow):
                    doomed.append((family, found[_ORIGINAL]))
        for family, original in doomed:
            try:
                netfilter.send(Message(_DELETE, 0, family + attribute(_ORIGINAL | _NESTED, original)))
            except NetlinkError as error:
                if error.errno != errno.ENOENT:  # it has ended meanwhile
                    raise
    return len(doomed)


def _flow(original: bytes, reply: bytes) -> Flow | None:
    there, back = attributes(original), attributes(reply)
    if not {_TUPLE_IP, _TUPLE_PROTO} <= there.keys() or _TUPLE_IP not in back:
        return None
    proto = attributes(there[_TUPLE_PROTO])
    protocol = _PROTOCOLS.get(int.from_bytes(proto.get(1, b""), "big"))
    if protocol is None or 3 not in proto:
        return None
    addresses, answering = attributes(there[_TUPLE_IP]), attributes(back[_TUPLE_IP])
    return Flow(
        protocol=protocol,
        destination=_address(addresses, 2, 4),
        port=int.from_bytes(proto[3], "big"),
        answers_from=_address(answering, 1, 3),
    )


def _address(found: dict[int, bytes], kind4: int, kind6: int) -> str:
    return str(ipaddress.ip_address(found[kind4] if kind4 in found else found[kind6]))
