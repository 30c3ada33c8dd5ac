"""Slots: network namespaces made ahead of need, ready but for an instance.  Synchronous, one thread.

A slot is a namespace (kept as a file), a veth pair whose far end is `eth0` in it, up, with its addresses
and default routes, and whose near end is a port of the bridge.  Making one takes about 2 ms here, handing
it out nothing.  A namespace in which an instance has run is never used again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from insula.errors import Failure
from insula.model.network import DEFAULT_MTU
from insula.network.addresses import make_mac
from insula.network.places import Place
from insula.network.stubs import Pair, open_stub
from insula.system import links, namespaces, sublinks
from insula.system.announce import announce
from insula.system.files import disk_errors
from insula.system.netlink import Netlink
from insula.system.tap import make_tap

log = logging.getLogger(__name__)

LINK_PREFIX = "iv"
INTERFACE = "eth0"
_LOOPBACK_INDEX = 1

# What Docker sets in every container's namespace (moby: daemon/oci_linux.go, WithSysctls), and no IPv6
# on links that have no IPv6 address: neighbour discovery wakes the host for nothing.
_SETTINGS = (
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv4/ping_group_range", "0 2147483647"),
    ("ipv6/conf/default/disable_ipv6", "1"),
)


# of a link that has one: routers are not looked for (who says to be one could listen in: CVE-2020-13401), and
# an address is used at once
_SETTINGS6 = (("accept_ra", "0"), ("accept_dad", "0"), ("disable_ipv6", "0"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """`link` is what the host has of it, "" on a parent; `interface` its name inside.  `address6` "" on a
    network without IPv6; `more`: further addresses with their prefix lengths."""

    netns: str
    link: str
    address: str
    mac: str
    address6: str = ""
    more: tuple[str, ...] = ()
    interface: str = INTERFACE

    @property
    def inside(self) -> tuple[str, str]:
        """The namespace and the interface in it, where that is all of a link; else ("", "")."""
        return ("", "") if self.link else (self.netns, self.interface)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where a link is plugged in: a bridge by its index, and how, or else `place`; and what all who are there
    have alike.  `gateways`: those that lead out."""

    bridge_index: int
    place: Place | None = None
    mtu: int = DEFAULT_MTU
    isolated: bool = False
    prefix_len: int = 0
    prefix_len6: int = 0
    gateways: tuple[str, ...] = ()


class SlotMaker:
    """Used from one thread, which it moves in and out of namespaces; that thread is nobody else's."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._route: Netlink | None = None
        self._home = -1

    def open(self) -> Netlink:
        """The socket to the daemon's own namespace, opened at first use."""
        if self._route is None:
            self._home = namespaces.open_netns()
            self._route = links.open_route()
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
        return self._route

    def close(self) -> None:
        if self._route is not None:
            self._route.close()
            os.close(self._home)
            self._route = None

    def make(
        self, seat: Seat, *, address: str, mac: str, address6: str = "", more: tuple[str, ...] = ()
    ) -> Slot:
        """With default routes through the seat's gateways.  Raises Failure; nothing is left then."""
        self.open()
        name = secrets.token_hex(5)
        slot = Slot(
            netns=f"{self._directory}/{name}",
            link="" if seat.place else LINK_PREFIX + name,
            address=address,
            mac=mac,
            address6=address6,
            more=more,
        )
        with self._inside_new(slot.netns) as (inside, netns_fd):
            self._add(inside, netns_fd, slot, seat=seat)
            _add_default_routes(inside, seat.gateways)
        return slot

    def add(self, seat: Seat, slot: Slot) -> None:
        """One more interface in the namespace of `slot`.  Raises Failure; nothing is left then."""
        self.open()
        with self._inside(slot.netns) as (inside, netns_fd):
            self._add(inside, netns_fd, slot, seat=seat)

    def _add(self, inside: Netlink, netns_fd: int, slot: Slot, *, seat: Seat) -> None:
        route, interface = self.open(), slot.interface
        if seat.place is None:
            with _sentence(f"connect {slot.link} to the bridge"):
                route.send(
                    *links.veth_messages(
                        slot.link,
                        seat.bridge_index,
                        peer=interface,
                        peer_mac=slot.mac,
                        peer_netns_fd=netns_fd,
                        mtu=seat.mtu,
                        isolated=seat.isolated,
                    )
                )
        else:
            with seat.place.refusals(seat.place.driver):
                route.send(
                    seat.place.interface_message(interface, mac=slot.mac, mtu=seat.mtu, netns_fd=netns_fd)
                )
        try:
            cidrs = [f"{slot.address}/{seat.prefix_len}", *slot.more]
            if slot.address6:
                cidrs.append(f"{slot.address6}/{seat.prefix_len6}")
            if any(":" in cidr for cidr in cidrs):
                self._let_ipv6(netns_fd, interface)
            with _sentence(f"set the addresses {', '.join(cidrs)}"):
                far = links.find_link(inside, interface)
                assert far is not None
                if slot.mac and far.mac != slot.mac:  # in passthru mode it begins with its parent's
                    inside.send(sublinks.mac_message(far.index, slot.mac))
                inside.send(
                    links.up_message(far.index),
                    *(links.address_message(far.index, *_split(cidr)) for cidr in cidrs),
                )
            if seat.place is None:
                self._introduce(seat, slot)
            else:
                self._announce_inside(netns_fd, slot, far)
        except BaseException:
            if slot.link:
                links.delete_link(route, slot.link)
            else:
                links.delete_link(inside, interface)
            raise

    def remove(self, netns: str, interface: str) -> None:
        """An interface that the host has no end of.  Fine if it is gone.  Raises Failure."""
        self.open()
        with self._inside(netns) as (inside, _), _sentence(f"remove {interface} from {netns}"):
            links.delete_link(inside, interface)

    def _let_ipv6(self, netns_fd: int, interface: str) -> None:
        """The thread is in the daemon's own namespace afterwards."""
        namespaces.enter(netns_fd)
        try:
            with _sentence(f"switch IPv6 on for {interface}"):
                for name, value in _SETTINGS6:
                    with open(f"/proc/sys/net/ipv6/conf/{interface}/{name}", "w") as file:
                        file.write(value)
        finally:
            namespaces.enter(self._home)

    def set_default_routes(self, netns: str, gateways: Sequence[str]) -> None:
        """One per family; those that are not given go.  Raises Failure."""
        self.open()
        with self._inside(netns) as (inside, _):
            with _sentence("take the default routes away"):
                links.drop_default_routes(inside)
            _add_default_routes(inside, gateways)

    @contextlib.contextmanager
    def _inside(self, path: str) -> Iterator[tuple[Netlink, int]]:
        """A socket into a namespace that is kept as `path`, and its descriptor."""
        with _sentence(f"enter the network namespace {path}"):
            netns_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            namespaces.enter(netns_fd)
            try:
                inside = links.open_route()
            finally:
                namespaces.enter(self._home)
            with inside:
                yield inside, netns_fd
        finally:
            os.close(netns_fd)

    def make_empty(self) -> str:
        """A namespace with loopback only.  Raises Failure."""
        self.open()
        path = f"{self._directory}/{secrets.token_hex(5)}"
        with self._inside_new(path):
            pass
        return path

    @contextlib.contextmanager
    def _inside_new(self, path: str) -> Iterator[tuple[Netlink, int]]:
        """Run the body in a new namespace, kept as `path`, loopback up; a failure takes it back."""
        namespaces.unshare_net()
        try:
            with _sentence(f"keep a network namespace as {path}"):
                namespaces.keep_netns(path)
            try:
                with _sentence("set up a network namespace"):
                    _set_sysctls()
                netns_fd = namespaces.open_netns()
                try:
                    with links.open_route() as inside:
                        with _sentence("bring up loopback"):
                            inside.send(links.up_message(_LOOPBACK_INDEX))
                        yield inside, netns_fd
                finally:
                    os.close(netns_fd)
            except BaseException:
                namespaces.drop_netns(path)
                raise
        finally:
            namespaces.enter(self._home)

    def make_tap(self, seat: Seat, slot: Slot) -> None:
        """A tap device on the bridge, or a macvtap on the parent.  Raises Failure, Unavailable; nothing is
        left then."""
        route, name = self.open(), slot.link
        if seat.place is not None:
            self._make_macvtap(seat.place, slot, seat.mtu)
            return
        make_tap(name)
        try:
            with _sentence(f"connect {name} to the bridge"):
                route.send(
                    *links.port_messages(name, seat.bridge_index, isolated=seat.isolated, mtu=seat.mtu)
                )
            self._introduce(seat, slot)
        except BaseException:
            links.delete_link(route, name)
            raise

    def _make_macvtap(self, place: Place, slot: Slot, mtu: int) -> None:
        route, name = self.open(), slot.link
        with place.refusals("macvtap"):
            route.send(place.macvtap_message(name, mac=slot.mac, mtu=mtu))
        try:
            with _sentence(f"set up {name}"):
                found = links.find_link(route, name)
                assert found is not None
                if found.mac != slot.mac:  # in passthru mode it begins with its parent's
                    route.send(sublinks.mac_message(found.index, slot.mac))
                # no IPv6 address of the host's on it
                route.send(
                    sublinks.alias_message(name, place.alias),
                    links.quiet_message(name),
                    links.up_message(found.index),
                )
            _announce(found.index, slot.mac, slot)
        except BaseException:
            links.delete_link(route, name)
            raise

    def _announce_inside(self, netns_fd: int, slot: Slot, interface: links.Link) -> None:
        """The thread is in the daemon's own namespace afterwards."""
        namespaces.enter(netns_fd)
        try:
            _announce(interface.index, slot.mac or interface.mac, slot)
        finally:
            namespaces.enter(self._home)

    def open_stub(self, netns: str) -> Pair:
        """Sockets for names, inside.  Raises Failure, ProgramMissing, ProgramFailed."""
        self.open()
        with self._inside(netns) as (_, netns_fd), _sentence(f"answer names in {netns}"):
            namespaces.enter(netns_fd)
            try:
                return open_stub()
            finally:
                namespaces.enter(self._home)

    def _introduce(self, seat: Seat, slot: Slot) -> None:
        """An address may have been another's a moment ago, with another MAC: the host forgets that, and those
        on the bridge are told.  An IPv4 address has the same MAC each time, unless one was chosen."""
        addresses = [*filter(None, (slot.address, slot.address6)), *(_split(cidr)[0] for cidr in slot.more)]
        try:
            for address in addresses:
                links.forget_neighbour(self.open(), seat.bridge_index, address)
            if len(addresses) > 1 or slot.mac != make_mac(slot.address):
                announce(seat.bridge_index, slot.mac, addresses)
        except OSError as error:
            log.warning("%s may not be reached for a while: %s", ", ".join(addresses), error)


def _announce(index: int, mac: str, slot: Slot) -> None:
    """On the wire, to those that may remember who had these addresses before."""
    addresses = [*filter(None, (slot.address, slot.address6)), *(_split(cidr)[0] for cidr in slot.more)]
    try:
        announce(index, mac, addresses)
    except OSError as error:
        log.warning("%s may not be reached for a while: %s", ", ".join(addresses), error)


def _split(cidr: str) -> tuple[str, int]:
    address, _, length = cidr.partition("/")
    return address, int(length)


def _add_default_routes(inside: Netlink, gateways: Sequence[str]) -> None:
    for gateway in gateways:
        with _sentence(f"set the default route to {gateway}"):
            inside.send(links.default_route_message(gateway))


def _set_sysctls() -> None:
    """In the thread's namespace: /proc/sys/net shows that of whoever opens it."""
    for name, value in _SETTINGS:
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            with open(f"/proc/sys/net/{name}", "w") as file:
                file.write(value)


@contextlib.contextmanager
def _sentence(action: str) -> Iterator[None]:
    try:
        with disk_errors(f"trying to {action}"):
            yield
    except OSError as error:  # NetlinkError is one
        raise Failure(f"cannot {action}: {error.strerror}") from error
