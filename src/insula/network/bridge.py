"""The bridge, its address, and the kernel's forwarding switches.  Synchronous, on the network thread."""

from __future__ import annotations

import errno
import ipaddress
import logging

from insula.errors import Failure
from insula.model.network import DEFAULT_MTU
from insula.network.addresses import make_mac
from insula.system import links
from insula.system.netlink import Netlink, NetlinkError

log = logging.getLogger(__name__)


def make_bridge(
    route: Netlink, name: str, subnet: str, gateway: str, *, anew: bool, mtu: int = DEFAULT_MTU, hint: str
) -> int:
    """Make the bridge or find it as it was left; returns its index.  `anew`: nothing is plugged in, so one
    that is there is replaced (its subnet may be another).  `hint`: what to do about a name or subnet that the
    host uses otherwise.  Raises Failure."""
    network = ipaddress.IPv4Network(subnet)
    found = links.find_link(route, name)
    if found is not None and found.kind != "bridge":
        raise Failure(f"the host already has a link {name}, which is no bridge", hint=hint)
    if found is not None and anew:
        links.delete_link(route, name)
        found = None
    _check_overlap(route, network, found.index if found else 0, hint)
    try:
        if found is None:
            route.send(links.bridge_message(name, make_mac(gateway)))
            found = links.find_link(route, name)
            assert found is not None
        else:
            route.send(links.up_message(found.index))
        if mtu != DEFAULT_MTU:  # set by hand it stays, else it follows the ports'
            route.send(links.mtu_message(found.index, mtu))
        try:
            route.send(links.address_message(found.index, gateway, network.prefixlen))
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise
    except NetlinkError as error:
        raise Failure(
            f"cannot make the bridge {name}: {error.strerror}",
            hint="the daemon needs root with CAP_NET_ADMIN",
        ) from error
    _switch("ip_forward")
    # else the kernel drops 127.0.0.1 as source of what the firewall redirects from the host's loopback;
    # the firewall's chain `guard` keeps instances from using it in the other direction
    _switch(f"conf/{name}/route_localnet")
    return found.index


def remove_bridge(route: Netlink, name: str) -> None:
    links.delete_link(route, name)


def _check_overlap(route: Netlink, network: ipaddress.IPv4Network, own_index: int, hint: str) -> None:
    """A wider route of the host (a VPN's 172.16.0.0/12) loses to ours; one as narrow would be cut off."""
    for other, index in links.list_subnets(route):
        if index != own_index and other.subnet_of(network):
            raise Failure(
                f"the subnet {network} is in use on this host: there is a route to {other}",
                hint=hint,
            )


def _switch(name: str) -> None:
    path = f"/proc/sys/net/ipv4/{name}"
    try:
        with open(path) as file:
            if file.read().strip() == "1":
                return
        with open(path, "w") as file:  # apart from reading: the kernel ignores a write that is not at 0
            file.write("1")
        log.info("%s is now 1", path)
    except OSError as error:
        raise Failure(f"cannot set {path}: {error.strerror}") from error
