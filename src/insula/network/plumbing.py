"""The network room's own thread: everything whose kernel work may wait for other kernel work.  Async.

Jobs run in the order in which they are asked for.  Taking down goes on in the background.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from insula.errors import InsulaError
from insula.model.network import Endpoint
from insula.network import leftovers
from insula.network.bridge import BridgeOrder, make_bridge, remove_bridge
from insula.network.firewall import Firewall, Publication, Zone
from insula.network.neighbours import find_forward_drop
from insula.network.parents import Parent, ParentOrder, find_or_make_parent, remove_parent
from insula.network.ranges import IPNetwork
from insula.network.slots import Seat, Slot, SlotMaker
from insula.network.stubs import Pair
from insula.system import links, namespaces
from insula.system.conntrack import Flow, forget_flows

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

# how long a namespace may take to go, and its link with it, before the link is deleted by name
_PATIENCE_S = (0.1, 0.2, 0.4, 0.8)


class Plumbing:
    def __init__(self, firewall: Firewall, *, directory: str) -> None:
        self._firewall = firewall
        self._directory = directory
        self._maker = SlotMaker(directory)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._stopping = asyncio.Event()
        self._releases: set[asyncio.Task[None]] = set()

    async def set_up(self, netns: Set[str]) -> None:
        """The directory of namespaces, without those that nobody has any more; `netns` are had.

        Raises Failure, Unavailable.
        """
        await self.do(self._set_up, netns)

    def _set_up(self, netns: Set[str]) -> None:
        namespaces.share_directory(self._directory)
        kept = {*netns, *leftovers.find_owned(self._directory).values()}
        leftovers.drop_unknown(self._maker.open(), self._directory, kept)

    async def make_bridge(self, order: BridgeOrder) -> int:
        """Its index.  Raises Failure."""
        return await self.do(self._make_bridge, order)

    def _make_bridge(self, order: BridgeOrder) -> int:
        return make_bridge(self._maker.open(), order)

    async def remove_bridge(self, name: str) -> None:
        await self.do(lambda: remove_bridge(self._maker.open(), name))

    async def find_or_make_parent(self, order: ParentOrder) -> Parent:
        """Raises Failure, InvalidRequest, Unavailable."""
        return await self.do(lambda: find_or_make_parent(self._maker.open(), order))

    async def remove_parent(self, order: ParentOrder) -> None:
        """If it is ours."""
        await self.do(lambda: remove_parent(self._maker.open(), order.name, order.alias))

    async def look_around(self) -> tuple[tuple[IPNetwork, ...], tuple[str, ...]]:
        """What the host has routes to, and the names of its links."""
        return await self.do(self._look_around)

    def _look_around(self) -> tuple[tuple[IPNetwork, ...], tuple[str, ...]]:
        route = self._maker.open()
        subnets = tuple(subnet for subnet, _ in links.list_subnets(route))
        return subnets, tuple(link.name for link in links.list_links(route))

    async def find_problem(self, bridge: str, *, ipv6: bool) -> str:
        """A firewall of the host's that is in the way, with the remedy, or ""."""
        return await self.do(lambda: find_forward_drop(bridge, ipv6=ipv6))

    async def tear_down(
        self, bridges: Sequence[str], parents: Sequence[ParentOrder], *, directory: bool
    ) -> None:
        """The reverse, once nothing is attached; `directory`: nor any namespace kept."""
        await self.do(self._tear_down, bridges, parents, directory)

    def _tear_down(self, bridges: Sequence[str], parents: Sequence[ParentOrder], directory: bool) -> None:
        self._firewall.remove()
        for bridge in bridges:
            remove_bridge(self._maker.open(), bridge)
        for parent in parents:
            remove_parent(self._maker.open(), parent.name, parent.alias)
        if directory:
            namespaces.unshare_directory(self._directory)

    async def close(self) -> None:
        """Finish taking down, then end the thread."""
        await self.settled()
        await self.do(self._maker.close)
        self._thread.shutdown()

    def hurry(self) -> None:
        """From now on links are deleted by name at once."""
        self._stopping.set()

    async def settled(self) -> None:
        """When everything released so far is gone."""
        while self._releases:
            await self.released()

    async def released(self) -> None:
        """When everything that is being released now is gone."""
        if self._releases:
            # not gather, which from Python 3.12 on returns at once, before `discard`, when all are done
            await asyncio.wait(self._releases)

    async def do(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run it on the thread."""
        return await asyncio.wrap_future(self._thread.submit(function, *args, **kwargs))

    async def find_owned(self) -> Mapping[str, str]:
        """Namespaces without a network, by instance id."""
        return await self.do(leftovers.find_owned, self._directory)

    async def make_slot(
        self, seat: Seat, *, address: str, mac: str, address6: str, more: tuple[str, ...]
    ) -> Slot:
        return await self.do(
            lambda: self._maker.make(seat, address=address, mac=mac, address6=address6, more=more)
        )

    async def add_interface(self, seat: Seat, slot: Slot) -> None:
        await self.do(self._maker.add, seat, slot)

    async def open_stub(self, netns: str) -> Pair:
        """Raises Failure, ProgramMissing, ProgramFailed."""
        return await self.do(self._maker.open_stub, netns)

    async def set_default_routes(self, netns: str, gateways: Sequence[str]) -> None:
        await self.do(self._maker.set_default_routes, netns, gateways)

    async def make_namespace(self) -> str:
        return await self.do(self._maker.make_empty)

    async def make_tap(self, seat: Seat, slot: Slot) -> None:
        await self.do(self._maker.make_tap, seat, slot)

    async def install_rules(self, zones: Sequence[Zone], publications: Iterable[Publication]) -> None:
        await self.do(self._firewall.install, zones, tuple(publications))

    async def forget_flows(self, wanted: Callable[[Flow], bool]) -> None:
        try:
            await self.do(forget_flows, wanted)
        except OSError as error:  # no ctnetlink: flows end by themselves after 30 to 210 s without traffic
            log.warning("cannot drop tracked flows: %s", error)

    async def plug_in_again(
        self, endpoints: Sequence[tuple[Endpoint, Seat]], bridges: Set[int], alias: str
    ) -> None:
        """Links that lost their bridge; taps that lost their endpoint are deleted, of macvtaps those that
        have this alias."""
        await self.do(self._plug_in_again, endpoints, bridges, alias)

    def _plug_in_again(
        self, endpoints: Sequence[tuple[Endpoint, Seat]], bridges: Set[int], alias: str
    ) -> None:
        route = self._maker.open()
        for endpoint, seat in endpoints:
            if not endpoint.link:  # it is inside altogether
                continue
            found = links.find_link(route, endpoint.link)
            if found is None:
                log.error("%s (%s) is gone: its instance has no network", endpoint.link, endpoint.address)
            elif seat.bridge_index and (found.master != seat.bridge_index or not found.up):
                route.send(*links.port_messages(endpoint.link, seat.bridge_index, isolated=seat.isolated))
        known = {endpoint.link for endpoint, _ in endpoints}
        leftovers.drop_taps(route, bridges, alias, known)

    def release(
        self,
        netns: str,
        link: str = "",
        gone: Callable[[], None] | None = None,
        *,
        inside: tuple[str, str] = ("", ""),
    ) -> None:
        """Let a namespace, or a tap, go in the background; `gone` is called when its link is no more.
        `inside`: a namespace and the interface in it that goes first, where that is all of a link."""
        # now: before a tap of the same name
        taken_down = self._thread.submit(self._take_down, netns, link, inside)
        rest = asyncio.create_task(self._see_off(asyncio.wrap_future(taken_down), link, gone))
        self._releases.add(rest)
        rest.add_done_callback(self._releases.discard)

    def _take_down(self, netns: str, link: str, inside: tuple[str, str]) -> int:
        """The link's index while it is there, else 0."""
        index = _index_of(link)
        if inside[1] and os.path.exists(inside[0]):
            try:
                self._maker.remove(*inside)
            except InsulaError as error:  # it goes with its namespace
                log.warning("%s", error)
        if netns:
            namespaces.drop_netns(netns)
        elif link:
            links.delete_link(self._maker.open(), link)
        return index

    async def _see_off(
        self, taken_down: asyncio.Future[int], link: str, gone: Callable[[], None] | None
    ) -> None:
        """The kernel takes a namespace apart some 30 ms after its last user, and its veth pair with it.

        Another link may have its name by then: the tap of a VM that was started again at once.
        """
        try:
            index = await taken_down
            for pause in _PATIENCE_S:
                if not index or _index_of(link) != index:
                    break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()
            else:  # some process still holds the namespace
                await self.do(self._delete, link, index)
        except (InsulaError, OSError) as error:
            log.error("cannot take down %s: %s", link or "a network namespace", error)
        finally:
            if gone is not None:
                gone()

    def _delete(self, link: str, index: int) -> None:
        if _index_of(link) == index:
            links.delete_link(self._maker.open(), link)


def _index_of(link: str) -> int:
    """0 when there is none of that name."""
    try:
        return socket.if_nametoindex(link) if link else 0
    except OSError:
        return 0
