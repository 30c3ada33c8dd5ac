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
from insula.system import links, namespaces
from insula.system.files import disk_errors
from insula.system.netlink import Netlink
from insula.system.tap import make_tap

LINK_PREFIX = "iv"
INTERFACE = "eth0"
MTU = 1500
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


class SlotMaker:
    """Used from one thread, which it moves in and out of namespaces; that thread is nobody else's."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._route: Netlink | None = None
        self._home = -1
        self.bridge_index = 0

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

    def make(self, address: str, prefix_len: int, gateway: str, mac: str) -> Slot:
        """Raises Failure; nothing is left then."""
        route = self.open()
        name = secrets.token_hex(5)
        slot = Slot(netns=f"{self._directory}/{name}", link=LINK_PREFIX + name, address=address, mac=mac)
        with self._inside_new(slot.netns) as (inside, netns_fd):
            with _sentence(f"connect {slot.link} to the bridge"):
                route.send(
                    *links.veth_messages(
                        slot.link,
                        self.bridge_index,
                        peer=INTERFACE,
                        peer_mac=mac,
                        peer_netns_fd=netns_fd,
                        mtu=MTU,
                    )
                )
            with _sentence(f"set the address {address}"):
                far = links.find_link(inside, INTERFACE)
                assert far is not None
                inside.send(
                    links.up_message(far.index),
                    links.address_message(far.index, address, prefix_len),
                    links.default_route_message(gateway),
                )
        return slot

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

    def make_tap(self, name: str) -> None:
        """A tap device on the bridge.  Raises Failure, Unavailable; nothing is left then."""
        route = self.open()
        make_tap(name)
        try:
            with _sentence(f"connect {name} to the bridge"):
                route.send(*links.port_messages(name, self.bridge_index))
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
