"""Elements of nftables maps and sets, added and removed by one small netlink transaction.  Synchronous.

Rule sets are written by `nft` (see network.firewall); a published port is only an element of a map,
and the program `nft`, 5 to 15 ms, need not be started for it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from insula.system.netlink import (
    NETLINK_NETFILTER,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    Netlink,
    attribute,
    nested,
    text,
)

_NFTABLES = 10
_BATCH_BEGIN = 16
_BATCH_END = 17
_NEW_ELEMENT = (_NFTABLES << 8) | 12
_DELETE_ELEMENT = (_NFTABLES << 8) | 14
NFPROTO_INET = 1


@dataclass(frozen=True, slots=True)
class Element:
    """Key and value as the kernel has them: each part of a concatenation padded to four bytes.  Of a set
    `value` is empty."""

    map: str
    key: bytes
    value: bytes


def open_netfilter() -> Netlink:
    return Netlink(NETLINK_NETFILTER)


def change_elements(
    netfilter: Netlink, table: str, *, add: Sequence[Element] = (), delete: Sequence[Element] = ()
) -> None:
    """All or none, in the inet table `table`.  Raises NetlinkError: ENOENT when the table, the map or an
    element to delete is not there, EEXIST when a key to add is."""
    begin = Message(_BATCH_BEGIN, 0, struct.pack(">BBH", socket.AF_UNSPEC, 0, _NFTABLES))
    end = Message(_BATCH_END, 0, begin.body)
    messages = [Message(_DELETE_ELEMENT, 0, _element_body(table, e, with_value=False)) for e in delete]
    messages += [
        Message(_NEW_ELEMENT, NLM_F_CREATE | NLM_F_EXCL, _element_body(table, e, with_value=True))
        for e in add
    ]
    if messages:
        netfilter.transact(begin, messages, end)


def _element_body(table: str, element: Element, *, with_value: bool) -> bytes:
    parts = [nested(1, attribute(1, element.key))]
    if with_value and element.value:
        parts.append(nested(2, attribute(1, element.value)))
    return (
        struct.pack(">BBH", NFPROTO_INET, 0, 0)
        + text(1, table)
        + text(2, element.map)
        + nested(3, nested(1, *parts))
    )
