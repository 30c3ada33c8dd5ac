"""Networks: what the engine asks of the network room.  Async.

Kernel work that may wait for other kernel work is done on one thread of this room's own; handing out a
prepared slot and publishing ports are done in place, well under a millisecond.  Everything made for an
instance is in the store before it is used, so that after a crash `start` and `recover` find it.  The networks
themselves are `fabric`'s, published ports `publishing`'s.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Sequence, Set
from typing import TypeVar

from insula.errors import Conflict, DiskFull, Forbidden, InsulaError
from insula.events import EventBus
from insula.model.ids import make_id, short_id
from insula.model.network import (
    NOTHING_WANTED,
    AddressRange,
    Endpoint,
    LinkKind,
    Network,
    NetworkRequest,
    PortBinding,
    Wanted,
)
from insula.model.reports import PruneFilters, PruneReport
from insula.network import leftovers
from insula.network.fabric import Fabric
from insula.network.joining import check_addresses, check_place, mac_on, name_neighbours, resolver_on, slot_of
from insula.network.publishing import Publishing
from insula.network.segments import Member, Segment
from insula.network.slots import LINK_PREFIX, Slot
from insula.store.store import Store
from insula.system.files import disk_errors
from insula.system.pool import Pool

log = logging.getLogger(__name__)

T = TypeVar("T")

# 80 KiB of kernel memory each; a burst of twenty starts finds one for everybody
_SLOTS = (20, 40)
_EMPTY_NAMESPACES = (4, 20)


class Networks:
    def __init__(
        self,
        store: Store,
        *,
        bridge: str,
        subnet: str,
        exec_root: str,
        events: EventBus,
        ipv6: AddressRange | None = None,
    ) -> None:
        """`ipv6`: what the default bridge is to have of it, None for nothing."""
        self._store = store
        self._events = events
        self._directory = f"{exec_root}/netns"
        self._members: dict[str, Member] = {}
        self._fabric = Fabric(
            store, events, self._members, bridge=bridge, subnet=subnet, ipv6=ipv6, directory=self._directory
        )
        self._publishing = Publishing(store, self._fabric)
        self._plumbing = self._fabric.plumbing
        # a small subnet is not all held back in slots
        size = ipaddress.IPv4Network(subnet).num_addresses
        if ipv6 is not None and ipv6.subnet:
            size = min(size, ipaddress.IPv6Network(ipv6.subnet).num_addresses)
        room = max((size - 3) // 4, 1)
        least, most = (min(bound, room) for bound in _SLOTS)
        self._slots = Pool(self._make_slot, self._drop_slot, least=least, most=most)
        least, most = _EMPTY_NAMESPACES
        self._namespaces = Pool(self._plumbing.make_namespace, self._plumbing.release, least=least, most=most)
        self._stale: set[tuple[str, str]] = set()
        self._empty: dict[str, str] = {}
        self._installed = False
        self._stopped = False

    # life

    async def start(self) -> None:
        """Make or find bridges and table, drop what a crash left unrecorded, prepare slots.  A host where
        that fails gets a daemon all the same: the reason is logged, and told to whoever connects."""
        self._fabric.load()
        for instance_id, endpoint, published in self._store.endpoints():
            segment = self._fabric.segment(endpoint.network_id)
            if segment is not None:
                segment.reserve(endpoint.address, endpoint.address6)
            member = self._members.setdefault(instance_id, Member())
            member.endpoints[endpoint.network_id] = endpoint
            member.ports += published
        try:
            await self._install()
        except (InsulaError, OSError) as error:
            log.error("no networks for now: %s", error)

    async def stop(self) -> None:
        """Instances keep their network.  With none attached, bridges and table go too.  Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self._plumbing.hurry()
        await self._fabric.fall_silent()
        await self._publishing.stop()
        await self._slots.close()
        await self._namespaces.close()
        await self._plumbing.settled()
        for member in self._members.values():
            member.let_go()
        if self._installed and not self._members:
            await self._fabric.tear_down(directory=not self._empty)
        await self._plumbing.close()
        self._fabric.firewall.close()

    async def recover(self, live: Set[str]) -> None:
        """After `start`: instances in `live` keep their network (ports are held again, links plugged in
        again where the bridge was lost), all others lose it."""
        for instance_id in [i for i in (*self._members, *self._empty) if i not in live]:
            await self.disconnect(instance_id)
        for instance_id, member in self._members.items():
            await self._publishing.hold_again(instance_id, member)
        if self._installed:
            endpoints = [each for member in self._members.values() for each in member.endpoints.values()]
            await self._fabric.plug_in_again(endpoints)
            for member in self._members.values():
                await self._answer_again(member)
        self._fabric.update_names()

    async def _answer_again(self, member: Member) -> None:
        try:
            if member.stub:
                await self._fabric.answer_inside(member.stub)
        except (InsulaError, OSError) as error:
            log.error("names are not answered in %s: %s", member.stub, error)

    # what there is

    def find(self, ref: str) -> Network:
        """By name, id or id prefix; `default` is the bridge.  Raises NoSuchNetwork, InvalidRequest."""
        return self._fabric.find(ref)

    def reference(self, network: Network) -> str:
        """What it alone is called: its name, unless another network has that, too; then its id."""
        return self._fabric.reference(network)

    def warnings(self) -> tuple[str, ...]:
        """What on this host keeps networks from working, for `docker info`."""
        return self._fabric.warnings()

    def list(self) -> tuple[Network, ...]:
        return self._fabric.list()

    def endpoints(self, instance_id: str) -> tuple[Endpoint, ...]:
        """In the order in which it was connected."""
        member = self._members.get(instance_id)
        return member.shown() if member else ()

    def ports(self, instance_id: str) -> tuple[PortBinding, ...]:
        """Published, with the host's ports decided."""
        member = self._members.get(instance_id)
        return member.ports if member else ()

    def namespace(self, instance_id: str) -> str:
        """Path of its network namespace; "" for one that has none of its own."""
        member = self._members.get(instance_id)
        return (member.netns if member else "") or self._empty.get(instance_id, "")

    def members(self, network_id: str) -> dict[str, Endpoint]:
        """By instance id."""
        return self._fabric.members(network_id)

    def neighbours(self, instance_id: str) -> tuple[tuple[str, str], ...]:
        """(address, names), for the /etc/hosts of an instance that has nobody to ask for them."""
        return name_neighbours(self._members, instance_id)

    def watch_neighbours(self, changed: Callable[[str], None]) -> None:
        """`changed` is called with the id of whoever has others now."""
        self._fabric.on_neighbours = changed

    # networks

    async def create(self, request: NetworkRequest) -> Network:
        """Raises InvalidRequest, UnsupportedField, Forbidden, Conflict, NotFound, Unavailable, Failure."""
        await self._install()
        return await self._fabric.create(request)

    async def remove(self, ref: str) -> None:
        """Raises NoSuchNetwork, InvalidRequest, Forbidden for a predefined one or one that is in use."""
        await self._fabric.remove(ref)

    async def prune(self, filters: PruneFilters) -> PruneReport:
        """Remove those of one's own that no running instance is on.  Names in the report, as Docker's."""
        return await self._fabric.prune(filters)

    # instances

    async def connect(
        self,
        instance_id: str,
        network: str,
        kind: LinkKind,
        *,
        wanted: Wanted = NOTHING_WANTED,
        names: Sequence[str] = (),
        dns: Sequence[str] = (),
    ) -> Endpoint:
        """Give an instance a place on a network.  `names`: what others find it by, on a network that has
        names; `dns`: whom its other questions go to.

        Raises NoSuchNetwork, InvalidRequest, Forbidden, Failure.
        """
        target = self.find(network)
        check_place(target, kind, wanted)
        member = self._members.get(instance_id, Member())
        if target.id in member.endpoints:
            name = names[0] if names else short_id(instance_id)
            raise Forbidden(f"endpoint with name {name} already exists in network {target.name}")
        check_addresses(target, wanted)
        await self._install()
        with self._fabric.joining(target) as segment:
            while segment.resting & {wanted.address, wanted.address6}:  # who had it has just ended
                await self._plumbing.released()
            if target.on_parent:
                await self._fabric.find_parent(segment)
            fresh = not member.netns and instance_id not in self._empty
            made = await self._plug_in(segment, member, instance_id, kind, wanted)
            endpoint = dataclasses.replace(
                made,
                names=tuple(dict.fromkeys(names)) if not target.predefined else (),
                resolver=resolver_on(target, kind),
                dns=tuple(dns),
                links=wanted.links if not target.predefined else (),
            )
            try:
                for stale in list(self._stale):
                    self._forget(*stale)
                before = member.ways_out()
                member.endpoints[target.id] = endpoint
                self._members[instance_id] = member
                try:
                    self._store.put_endpoint(instance_id, endpoint)
                    if kind is LinkKind.TAP:
                        await self._plumbing.make_tap(segment.seat, slot_of(endpoint))
                    await self._publishing.follow(
                        instance_id, member, before, netns="" if fresh else self.namespace(instance_id)
                    )
                    if member.stub:
                        await self._fabric.answer_inside(member.stub)
                except BaseException:
                    del member.endpoints[target.id]
                    self._silence_without(member, endpoint)
                    if not member.endpoints:
                        del self._members[instance_id]
                    raise
            except BaseException:
                self._release(endpoint, alone=not fresh)
                self._forget(instance_id, target.id)
                raise
        if member.is_named:
            self._fabric.update_names()
        self._events.publish(
            "network", "connect", target.id, container=instance_id, name=target.name, type=target.driver
        )
        return next(e for e in member.shown() if e.network_id == target.id)

    async def _plug_in(
        self, segment: Segment, member: Member, instance_id: str, kind: LinkKind, wanted: Wanted
    ) -> Endpoint:
        """Make the link; of a tap only what it is to be."""
        network = segment.network
        netns = self.namespace(instance_id) if kind is LinkKind.VETH else ""
        interface = member.free_interface()
        if kind is LinkKind.TAP or netns:
            first_tap = kind is LinkKind.TAP and not member.endpoints
            address, address6 = segment.take(wanted.address, segment.chosen6(wanted.address6))
            inside = bool(netns) and network.on_parent
            slot = Slot(
                netns=netns,
                link="" if inside else LINK_PREFIX + (instance_id if first_tap else make_id())[:10],
                address=address,
                address6=address6,
                mac=mac_on(network, wanted, address),
                more=wanted.more,
                interface=interface,
            )
            if netns:
                await self._made(
                    self._add_interface(segment, slot),
                    lambda made: self._drop(segment, made, alone=True),
                )
        elif network.predefined and not (wanted.mac or wanted.more):
            slot = await self._slots.take()
        else:
            making = self._make_slot_on(segment, wanted)
            slot = await self._made(making, lambda slot: self._drop(segment, slot))
        gateway, gateway6 = segment.gateways
        return Endpoint(
            network_id=network.id,
            network_name=network.name,
            kind=kind,
            link=slot.link,
            interface=slot.interface,
            mac=slot.mac,
            address=slot.address,
            prefix_len=segment.seat.prefix_len,
            gateway=gateway,
            netns=slot.netns,
            mtu=segment.seat.mtu,
            address6=slot.address6,
            prefix_len6=segment.seat.prefix_len6 if slot.address6 else 0,
            gateway6=gateway6,
            endpoint_id=make_id(),
            more=slot.more,
            driver=network.driver,
        )

    async def empty_namespace(self, instance_id: str) -> str:
        """Path of a network namespace with loopback only (`--network none`).  Raises Failure."""
        await self._install()
        path = await self._namespaces.take()
        try:
            self._own(instance_id, path)
        except BaseException:
            self._plumbing.release(path)
            raise
        return path

    def _own(self, instance_id: str, path: str) -> None:
        with disk_errors(f"noting the namespace of {short_id(instance_id)}"):
            leftovers.own(self._directory, instance_id, path)
        self._empty[instance_id] = path

    async def publish(
        self, instance_id: str, bindings: Sequence[PortBinding], *, name: str = ""
    ) -> tuple[PortBinding, ...]:
        """Let host ports lead to the instance, all of them or none; returns them with ports decided.  None
        for one that is on internal networks only, or whose way out is beside the host, as in Docker.

        One that names no address is two, of IPv4 and IPv6, on a host that has both.  `name` is the
        instance's, for the message.  Raises Failure (port taken), InvalidRequest, UnsupportedField.
        """
        if not bindings:
            return ()
        member = self._members.get(instance_id)
        if member is None:
            raise Conflict(f"instance {short_id(instance_id)} is connected to no network")
        endpoint = member.publisher()
        if endpoint is None:
            return ()
        host_ip = self.find(endpoint.network_id).host_ip
        return await self._publishing.publish(instance_id, member, bindings, host_ip=host_ip, name=name)

    async def disconnect(self, instance_id: str) -> None:
        """Take everything back: ports now, namespace and links soon after.  Idempotent."""
        if path := self._empty.pop(instance_id, None):
            leftovers.disown(self._directory, instance_id)
        member = self._members.get(instance_id)
        if member is None:
            if path:
                self._plumbing.release(path)
            return
        self._forget(instance_id)
        del self._members[instance_id]
        await self._publishing.end(instance_id, member, installed=self._installed)
        self._fabric.silence(member.stub)
        await self._publishing.forget_flows(member)
        for endpoint in sorted(member.endpoints.values(), key=lambda each: bool(each.link)):
            self._release(endpoint, alone=not endpoint.link)  # what is all inside goes before its namespace
            self._tell_disconnect(instance_id, endpoint)
        if not any(endpoint.link for endpoint in member.endpoints.values()):
            path = path or member.netns
        if path:
            self._plumbing.release(path)
        if member.is_named:
            self._fabric.update_names()

    async def leave(self, instance_id: str, network_id: str) -> None:
        """Take back one place of an instance that runs on; a VM has let go of its link.  Idempotent."""
        member = self._members.get(instance_id)
        endpoint = member.endpoints.get(network_id) if member else None
        if member is None or endpoint is None:
            return
        if endpoint.netns and len(member.endpoints) == 1 and instance_id not in self._empty:
            self._own(instance_id, endpoint.netns)  # the namespace is the instance's until its end
        before = member.ways_out()
        del member.endpoints[network_id]
        self._forget(instance_id, network_id)
        self._silence_without(member, endpoint)
        self._release(endpoint, alone=True)
        await self._publishing.follow(instance_id, member, before, netns=self.namespace(instance_id))
        if not member.endpoints:
            del self._members[instance_id]
        self._fabric.update_names()
        self._tell_disconnect(instance_id, endpoint)

    def rename(self, instance_id: str, old: str, new: str) -> None:
        """Others find it by its new name from now on."""
        member = self._members.get(instance_id)
        if member is None:
            return
        for network_id, endpoint in member.endpoints.items():
            names = tuple(dict.fromkeys(new if name == old else name for name in endpoint.names))
            member.endpoints[network_id] = dataclasses.replace(endpoint, names=names)
            self._store.put_endpoint(instance_id, member.endpoints[network_id], member.ports_at(network_id))
        self._fabric.update_names()

    # inside

    def _silence_without(self, member: Member, endpoint: Endpoint) -> None:
        """It has just lost this one."""
        if endpoint.on_parent and not member.stub:
            self._fabric.silence(endpoint.netns)

    def _tell_disconnect(self, instance_id: str, endpoint: Endpoint) -> None:
        self._events.publish(
            "network",
            "disconnect",
            endpoint.network_id,
            container=instance_id,
            name=endpoint.network_name,
            type=endpoint.driver,
        )

    def _forget(self, instance_id: str, network_id: str = "") -> None:
        """Also on a full disk, where the record is dropped later: removing things must work there."""
        try:
            self._store.delete_endpoints(instance_id, network_id)
            self._stale.discard((instance_id, network_id))
        except DiskFull as error:
            log.warning("the endpoint of %s stays recorded for now: %s", short_id(instance_id), error)
            self._stale.add((instance_id, network_id))

    async def _install(self) -> None:
        """Once per daemon, or again with the next request if it failed."""
        if self._installed:
            return
        async with self._fabric.changing:
            if not self._installed:
                await self._fabric.set_up()
                self._empty.update(await self._plumbing.find_owned())
                self._installed = True
                self._slots.start()
                self._namespaces.start()

    async def _make_slot(self) -> Slot:
        """For the default network's pool."""
        return await self._make_slot_on(self._fabric.default())

    async def _make_slot_on(self, segment: Segment, wanted: Wanted = NOTHING_WANTED) -> Slot:
        address, address6 = segment.take(wanted.address, segment.chosen6(wanted.address6))
        try:
            return await self._plumbing.make_slot(
                segment.seat,
                address=address,
                mac=mac_on(segment.network, wanted, address),
                address6=address6,
                more=wanted.more,
            )
        except InsulaError:
            segment.give_back(address, address6)
            raise

    async def _add_interface(self, segment: Segment, slot: Slot) -> Slot:
        try:
            await self._plumbing.add_interface(segment.seat, slot)
        except InsulaError:
            segment.give_back(slot.address, slot.address6)
            raise
        return slot

    async def _made(self, making: Awaitable[T], drop: Callable[[T], None]) -> T:
        """Should whoever asked go away meanwhile, it is dropped once it is made."""
        task = asyncio.ensure_future(making)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(
                lambda done: drop(done.result()) if not done.cancelled() and not done.exception() else None
            )
            raise

    def _drop_slot(self, slot: Slot) -> None:
        self._drop(self._fabric.default(), slot)

    def _drop(self, segment: Segment, slot: Slot, *, alone: bool = False) -> None:
        """`alone`: its namespace stays.  Its address rests until the link is gone."""
        segment.resting |= set(filter(None, (slot.address, slot.address6)))
        self._plumbing.release(
            "" if alone else slot.netns,
            slot.link,
            lambda: segment.give_back(slot.address, slot.address6),
            inside=slot.inside,
        )

    def _release(self, endpoint: Endpoint, *, alone: bool = False) -> None:
        segment, slot = self._fabric.segment(endpoint.network_id), slot_of(endpoint)
        if segment is not None:
            self._drop(segment, slot, alone=alone)
        else:  # its network is gone from the store
            self._plumbing.release("" if alone else slot.netns, slot.link, inside=slot.inside)
