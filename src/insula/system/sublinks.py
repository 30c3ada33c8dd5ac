"""Links that are made on another link, their parent, and share its wire: macvlan, ipvlan, macvtap, 802.1q.

And dummies, which are parents without a wire.  Requests only, for `links` and `netlink`: pure.  What the
numbers mean is in the kernel's include/uapi/linux/if_link.h.
"""

from __future__ import annotations

import errno
import struct

from insula.system.links import (
    IFLA_ADDRESS,
    IFLA_IFALIAS,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINK,
    IFLA_LINKINFO,
    IFLA_MTU,
    IFLA_NET_NS_FD,
    RTM_NEWLINK,
    link_header,
    mac_bytes,
)
from insula.system.netlink import NLM_F_CREATE, NLM_F_EXCL, Message, attribute, nested, number, text

MACVLAN_MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
IPVLAN_MODES = {"l2": 0, "l3": 1, "l3s": 2}
IPVLAN_FLAGS = {"bridge": 0, "private": 1, "vepa": 2}

_MODE, _FLAGS, _VLAN_ID = 1, 2, 1


def macvlan_message(
    name: str, parent: int, *, mode: str, mac: str, mtu: int = 0, netns_fd: int = -1, tap: bool = False
) -> Message:
    """Down, in the namespace of `netns_fd` at once.  `parent` is an index; `mtu` 0: the parent's.  `tap`: a
    macvtap, whose frames come and go through a character device."""
    mine = attribute(IFLA_ADDRESS, mac_bytes(mac))
    return _make(
        name,
        "macvtap" if tap else "macvlan",
        number(_MODE, MACVLAN_MODES[mode]),
        parent=parent,
        more=mine + _placed(mtu, netns_fd),
    )


def ipvlan_message(
    name: str, parent: int, *, mode: str, flag: str, mtu: int = 0, netns_fd: int = -1
) -> Message:
    """As `macvlan_message`; it has its parent's MAC.  All that are on one parent have the mode and flag of
    whichever was made last."""
    data = attribute(_MODE, _short(IPVLAN_MODES[mode])) + attribute(_FLAGS, _short(IPVLAN_FLAGS[flag]))
    return _make(name, "ipvlan", data, parent=parent, more=_placed(mtu, netns_fd))


def vlan_messages(name: str, parent: int, vlan_id: int, *, alias: str) -> tuple[Message, ...]:
    """802.1q, up."""
    made = _make(name, "vlan", attribute(_VLAN_ID, _short(vlan_id)), parent=parent)
    return made, alias_message(name, alias), _up(name)


def dummy_messages(name: str, *, alias: str) -> tuple[Message, ...]:
    """Up."""
    return _make(name, "dummy", b""), alias_message(name, alias), _up(name)


def alias_message(name: str, alias: str) -> Message:
    """The kernel takes none when a link is made."""
    return Message(RTM_NEWLINK, 0, link_header() + text(IFLA_IFNAME, name) + text(IFLA_IFALIAS, alias))


def mac_message(index: int, mac: str) -> Message:
    return Message(RTM_NEWLINK, 0, link_header(index) + attribute(IFLA_ADDRESS, mac_bytes(mac)))


def explain_refusal(number: int | None, kind: str, parent: str) -> tuple[str, str]:
    """(why the kernel makes no link of this kind on `parent`, what to do); "" where its own word will do."""
    if number == errno.EOPNOTSUPP:
        return f"this host's kernel has no {kind} links", f"try: modprobe {kind}"
    if number == errno.EBUSY:
        return (
            f"{parent} is taken: it carries links of another kind, or is a port of a bridge or bond",
            "macvlan and ipvlan cannot be on one parent at a time",
        )
    if number == errno.EINVAL:
        return (
            f"the kernel does not let {parent} carry one more {kind}",
            "a passthru link is alone on its parent; and its MTU is no larger than the parent's",
        )
    if number == errno.EADDRINUSE:
        return f"the MAC address is in use on {parent}", "choose another --mac-address"
    return "", ""


def _make(name: str, kind: str, data: bytes, *, parent: int = 0, more: bytes = b"") -> Message:
    details = nested(IFLA_INFO_DATA, data) if data else b""
    info = nested(IFLA_LINKINFO, text(IFLA_INFO_KIND, kind), details)
    on = number(IFLA_LINK, parent) if parent else b""
    body = link_header() + text(IFLA_IFNAME, name) + on + more + info
    return Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def _placed(mtu: int, netns_fd: int) -> bytes:
    size = number(IFLA_MTU, mtu) if mtu else b""
    return size + (number(IFLA_NET_NS_FD, netns_fd) if netns_fd >= 0 else b"")


def _up(name: str) -> Message:
    return Message(RTM_NEWLINK, 0, link_header(up=True) + text(IFLA_IFNAME, name))


def _short(value: int) -> bytes:
    return struct.pack("=H", value)
