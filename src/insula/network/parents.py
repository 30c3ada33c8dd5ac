"""The parents of macvlan and ipvlan networks: the host's own links, and those that we make of them.
Synchronous, on the network thread.

`eth0.10` is made where it is missing, as 802.1q on eth0, and a dummy where no parent was named.  What we make
says so in its alias, so that only that is ever taken down, and not what an administrator has made by the same
name.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from insula.errors import Failure, InvalidRequest, Unavailable
from insula.system import links, sublinks
from insula.system.netlink import Message, Netlink, NetlinkError

_VLAN_IDS = range(1, 4095)
_MODULES = {"vlan": "8021q", "dummy": "dummy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentOrder:
    """`own`: a dummy, where it is missing.  `alias` of what we make."""

    name: str
    own: bool
    alias: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    index: int
    mtu: int


def find_or_make_parent(route: Netlink, order: ParentOrder) -> Parent:
    """Raises Failure and InvalidRequest, in moby's words; Unavailable when the kernel cannot make it."""
    found = links.find_link(route, order.name)
    if found is None:
        if order.own:
            _make(route, order.name, "dummy", sublinks.dummy_messages(order.name, alias=order.alias))
        else:
            _make_vlan(route, order)
        found = links.find_link(route, order.name)
    if found is None:
        raise _missing(order.name)
    return Parent(index=found.index, mtu=found.mtu)


def parse_vlan(name: str) -> tuple[str, int] | None:
    """(link, 802.1q id) of `eth0.10`; None for what has no dot.  Pure.  Raises InvalidRequest."""
    if "." not in name:
        return None
    base, _, number = name.partition(".")
    if not base or "." in number:
        raise InvalidRequest(
            "required interface name format is: name.vlan_id, ex. eth0.10 for vlan 10, instead received "
            f"{name}"
        )
    if not (number.isascii() and number.isdecimal()):
        raise InvalidRequest(f"unable to parse a valid vlan id from: {number} (ex. eth0.10 for vlan 10)")
    if int(number) not in _VLAN_IDS:
        raise InvalidRequest(f"vlan id must be between 1-4094, received: {int(number)}")
    return base, int(number)


def _make_vlan(route: Netlink, order: ParentOrder) -> None:
    parsed = parse_vlan(order.name)
    base = links.find_link(route, parsed[0]) if parsed else None
    if parsed is None or base is None:
        raise _missing(parsed[0] if parsed else order.name)
    made = sublinks.vlan_messages(order.name, base.index, parsed[1], alias=order.alias)
    _make(route, order.name, "vlan", made)


def _make(route: Netlink, name: str, kind: str, messages: tuple[Message, ...]) -> None:
    try:
        route.send(*messages)
    except NetlinkError as error:
        if error.position:  # it was made, and no more
            links.delete_link(route, name)
        if error.errno == errno.EOPNOTSUPP:
            raise Unavailable(
                f"cannot make {name}: this host's kernel has no {kind} links",
                hint=f"try: modprobe {_MODULES[kind]}; or name a -o parent= that the host has",
            ) from error
        raise Failure(f"cannot make {name}, a {kind} link: {error.strerror}") from error


def _missing(name: str) -> Failure:
    return Failure(
        f"the requested parent interface {name} was not found on the host",
        hint="name one that `ip link` shows: -o parent=eth0, or eth0.10 for VLAN 10 of eth0",
    )


def remove_parent(route: Netlink, name: str, alias: str) -> None:
    """If it is ours."""
    found = links.find_link(route, name)
    if found is not None and found.alias == alias and found.kind in ("vlan", "dummy"):
        links.delete_link(route, name)
