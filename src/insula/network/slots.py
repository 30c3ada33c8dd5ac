"""Slots: network namespaces made ahead of need, ready but for an instance.  Synchronous, one thread.

A slot is a namespace (kept as a file), a veth pair whose far end is `eth0` in it, up, with its address
and default route, and whose near end is a port of the bridge.  Making one takes about 2 ms here, handing
it out nothing.  A namespace in which an instance has run is never used again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from insula.errors import Failure
from insula.model.network import DEFAULT_MTU
from insula.system import links, namespaces
from insula.system.files import disk_errors
from insula.system.netlink import Netlink
from insula.system.tap import make_tap

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    netns: str
    link: str
    address: str
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Where a link is plugged in: a bridge by its index, and how."""

    bridge_index: int
    mtu: int = DEFAULT_MTU
    isolated: bool = False


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

    def make(self, seat: Seat, address: str, prefix_len: int, gateway: str, mac: str) -> Slot:
        """`gateway` "": no default route.  Raises Failure; nothing is left then."""
        self.open()
        name = secrets.token_hex(5)
        slot = Slot(netns=f"{self._directory}/{name}", link=LINK_PREFIX + name, address=address, mac=mac)
        with self._inside_new(slot.netns) as (inside, netns_fd):
            self._add(inside, netns_fd, slot, seat=seat, interface=INTERFACE, prefix_len=prefix_len)
            if gateway:
                with _sentence(f"set the default route to {gateway}"):
                    inside.send(links.default_route_message(gateway))
        return slot

    def add(self, seat: Seat, slot: Slot, interface: str, prefix_len: int) -> None:
        """One more interface in the namespace of `slot`.  Raises Failure; nothing is left then."""
        self.open()
        with self._inside(slot.netns) as (inside, netns_fd):
            self._add(inside, netns_fd, slot, seat=seat, interface=interface, prefix_len=prefix_len)

    def _add(
        self, inside: Netlink, netns_fd: int, slot: Slot, *, seat: Seat, interface: str, prefix_len: int
    ) -> None:
        route = self.open()
        try:
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
            with _sentence(f"set the address {slot.address}"):
                far = links.find_link(inside, interface)
                assert far is not None
                inside.send(
                    links.up_message(far.index), links.address_message(far.index, slot.address, prefix_len)
                )
        except BaseException:
            links.delete_link(route, slot.link)
            raise

    def set_default_route(self, netns: str, gateway: str) -> None:
        """`gateway` "": none.  Raises Failure."""
        self.open()
        with (
            self._inside(netns) as (inside, _),
            _sentence(f"set the default route to {gateway or 'nowhere'}"),
        ):
            links.drop_default_routes(inside)
            if gateway:
                inside.send(links.default_route_message(gateway))

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

    def make_tap(self, name: str, seat: Seat) -> None:
        """A tap device on the bridge.  Raises Failure, Unavailable; nothing is left then."""
        route = self.open()
        make_tap(name)
        try:
            with _sentence(f"connect {name} to the bridge"):
                route.send(
                    *links.port_messages(name, seat.bridge_index, isolated=seat.isolated, mtu=seat.mtu)
                )
        except BaseException:
            links.delete_link(route, name)
            raise


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
