"""The bridge, its address, and the kernel's forwarding switches.  Synchronous, on the network thread."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
from dataclasses import dataclass

from insula.errors import Failure
from insula.model.network import DEFAULT_MTU
from insula.network.addresses import make_mac
from insula.network.ranges import IPNetwork, contains
from insula.system import links
from insula.system.netlink import Netlink, NetlinkError

log = logging.getLogger(__name__)

_SYSCTL = "/proc/sys/net/"


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeOrder:
    """A bridge to make, or to find as it was left.  `anew`: nothing is plugged in, so one that is there is
    replaced (its subnet may be another).  `hint`: what to do about a name or subnet that the host uses
    otherwise."""

    name: str
    subnet: str
    gateway: str
    mtu: int
    anew: bool
    hint: str
    subnet6: str = ""
    gateway6: str = ""


def make_bridge(route: Netlink, order: BridgeOrder) -> int:
    """Make the bridge or find it as it was left; returns its index.  Raises Failure."""
    name, hint = order.name, order.hint
    network = ipaddress.IPv4Network(order.subnet)
    found = links.find_link(route, name)
    if found is not None and found.kind != "bridge":
        raise Failure(f"the host already has a link {name}, which is no bridge", hint=hint)
    if found is not None and order.anew:
        links.delete_link(route, name)
        found = None
    _check_overlap(route, network, found.index if found else 0, hint)
    network6 = ipaddress.IPv6Network(order.subnet6) if order.subnet6 else None
    if network6 is not None:
        _check_overlap(route, network6, found.index if found else 0, hint)
    try:
        if found is None:
            route.send(links.bridge_message(name, make_mac(order.gateway)))
            found = links.find_link(route, name)
            assert found is not None
        else:
            route.send(links.up_message(found.index))
        _believe_no_router(name)
        if order.mtu != DEFAULT_MTU:  # set by hand it stays, else it follows the ports'
            route.send(links.mtu_message(found.index, order.mtu))
        _add_address(route, found.index, order.gateway, network.prefixlen)
        if network6 is not None:
            _let_ipv6(name)
            _add_address(route, found.index, order.gateway6, network6.prefixlen)
    except NetlinkError as error:
        raise Failure(
            f"cannot make the bridge {name}: {error.strerror}",
            hint="the daemon needs root with CAP_NET_ADMIN",
        ) from error
    _switch("ipv4/ip_forward")
    # else the kernel drops 127.0.0.1 as source of what the firewall redirects from the host's loopback;
    # the firewall's chain `guard` keeps instances from using it in the other direction
    _switch(f"ipv4/conf/{name}/route_localnet")
    return found.index


def _add_address(route: Netlink, index: int, address: str, prefix_len: int) -> None:
    try:
        route.send(links.address_message(index, address, prefix_len))
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise


def _believe_no_router(name: str) -> None:
    """Also without IPv6 of ours a bridge has a link-local address, and a host that listens for routers there
    would send its own traffic through any instance that says to be one (CVE-2020-13401)."""
    if os.path.exists(f"{_SYSCTL}ipv6/conf/{name}"):
        _switch(f"ipv6/conf/{name}/accept_ra", "0")


def _let_ipv6(name: str) -> None:
    """On the bridge, and through the host: what Docker sets, too."""
    if not os.path.exists(_SYSCTL + "ipv6"):
        raise Failure("this host's kernel has no IPv6", hint="boot it without ipv6.disable=1")
    for setting, value in (("accept_dad", "0"), ("disable_ipv6", "0")):
        _switch(f"ipv6/conf/{name}/{setting}", value)
    if _read(f"{_SYSCTL}ipv6/conf/all/forwarding") == "1":
        return
    # a host that forwards forgets the routers that it has heard of, and hears no more of them (RFC 4861,
    # 6.2.2), but for links that say so: those that have listened so far go on
    for link in os.listdir(f"{_SYSCTL}ipv6/conf"):
        if link not in ("all", "default", name) and _read(f"{_SYSCTL}ipv6/conf/{link}/accept_ra") == "1":
            _switch(f"ipv6/conf/{link}/accept_ra", "2")
    _switch("ipv6/conf/all/forwarding")


def remove_bridge(route: Netlink, name: str) -> None:
    links.delete_link(route, name)


def _check_overlap(route: Netlink, network: IPNetwork, own_index: int, hint: str) -> None:
    """A wider route of the host (a VPN's 172.16.0.0/12) loses to ours; one as narrow would be cut off."""
    for other, index in links.list_subnets(route):
        if index != own_index and contains(network, other):
            raise Failure(
                f"the subnet {network} is in use on this host: there is a route to {other}",
                hint=hint,
            )


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def _switch(name: str, value: str = "1") -> None:
    path = _SYSCTL + name
    try:
        if _read(path) == value:
            return
        with open(path, "w") as file:  # apart from reading: the kernel ignores a write that is not at 0
            file.write(value)
        log.info("%s is now %s", path, value)
    except OSError as error:
        raise Failure(f"cannot set {path}: {error.strerror}") from error
