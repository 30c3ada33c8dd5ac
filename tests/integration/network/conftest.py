"""A host of its own for every test: a network namespace, with an 'outside' network beside it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from insula.events import EventBus
from insula.model.network import AddressRange
from insula.network.networks import Networks
from insula.store.store import Store
from insula.system import links, mounts, namespaces

T = TypeVar("T")

OUTSIDE = "198.51.100.2"
HOST = "198.51.100.1"
SUBNET = "172.29.0.0/16"
GATEWAY = "172.29.0.1"


@dataclass
class Host:
    """The private host: the test's own thread is in it."""

    exec_root: str
    data_root: str
    outside: int  # a namespace on the other side of a wire, with `HOST` as its gateway to everything

    def store(self) -> Store:
        return Store(f"{self.data_root}/insula.db")

    def networks(
        self,
        store: Store,
        *,
        bridge: str = "insulat0",
        subnet: str = SUBNET,
        exec_root: str = "",
        ipv6: AddressRange | None = None,
    ) -> Networks:
        return Networks(
            store,
            bridge=bridge,
            subnet=subnet,
            exec_root=exec_root or self.exec_root,
            events=EventBus(),
            ipv6=ipv6,
        )

    def links(self) -> list[str]:
        with links.open_route() as route:
            return [link.name for link in links.list_links(route) if link.name not in ("lo", "wire", "wire1")]


def inside(netns: int | str, work: Callable[[], T]) -> T:
    """Run something in another network namespace, on a thread of its own."""
    results: list[T] = []

    def run() -> None:
        fd = os.open(netns, os.O_RDONLY) if isinstance(netns, str) else os.dup(netns)
        try:
            namespaces.enter(fd)
        finally:
            os.close(fd)
        results.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert results, "see the thread's exception above"
    return results[0]


def make_socket(netns: int | str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, kind)
        made.settimeout(5)
        return made

    return inside(netns, make)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    home = namespaces.open_netns()
    namespaces.unshare_net()
    try:
        outside = _make_outside()
        exec_root = tmp_path / "run"
        yield Host(exec_root=str(exec_root), data_root=str(tmp_path), outside=outside)
        os.close(outside)
    finally:
        namespaces.enter(home)
        os.close(home)
        for mounted in ("run", "other"):
            mounts.umount_below(str(tmp_path / mounted))


def _make_outside() -> int:
    made: list[int] = []

    def make() -> None:
        namespaces.unshare_net()
        made.append(namespaces.open_netns())

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    (outside,) = made
    with links.open_route() as route:
        route.send(links.bridge_message("wire", "02:00:00:00:00:01"))
        wire = links.find_link(route, "wire")
        assert wire is not None
        route.send(
            links.up_message(1),
            links.address_message(wire.index, HOST, 24),
            *links.veth_messages(
                "wire1",
                wire.index,
                peer="eth0",
                peer_mac="02:00:00:00:00:02",
                peer_netns_fd=outside,
                mtu=1500,
            ),
        )

    def configure() -> None:
        with links.open_route() as route:
            eth0 = links.find_link(route, "eth0")
            assert eth0 is not None
            route.send(
                links.up_message(1),
                links.up_message(eth0.index),
                links.address_message(eth0.index, OUTSIDE, 24),
                links.default_route_message(HOST),
            )

    inside(outside, configure)
    return outside


@pytest.fixture
async def networks(host: Host) -> AsyncIterator[Networks]:
    store = host.store()
    made = host.networks(store)
    await made.start()
    yield made
    await made.stop()
    store.close()
