"""Networks: what the engine asks of the network room.  Async.

Kernel work that may wait for other kernel work is done on one thread of this room's own; handing out a
prepared slot and publishing ports are done in place, well under a millisecond.  Everything made for an
instance is in the store before it is used, so that after a crash `start` and `recover` find it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import logging
import socket
from collections.abc import Sequence, Set

from insula.errors import Conflict, DiskFull, Failure, InsulaError, InvalidRequest
from insula.events import EventBus
from insula.model.ids import make_id, short_id
from insula.model.network import Endpoint, LinkKind, Network, PortBinding
from insula.network import leftovers, ports
from insula.network.addresses import Addresses, make_mac
from insula.network.catalog import find_network, make_catalog
from insula.network.firewall import Firewall, Publication
from insula.network.plumbing import Plumbing
from insula.network.slots import INTERFACE, LINK_PREFIX, MTU, Slot
from insula.store.store import Store
from insula.system.files import disk_errors
from insula.system.pool import Pool

log = logging.getLogger(__name__)

# 80 KiB of kernel memory each; a burst of twenty starts finds one for everybody
_SLOTS = (20, 40)
_EMPTY_NAMESPACES = (4, 20)


@dataclasses.dataclass(slots=True)
class _Attachment:
    endpoint: Endpoint
    ports: tuple[PortBinding, ...] = ()
    held: list[socket.socket] = dataclasses.field(default_factory=list)

    def publications(self) -> tuple[Publication, ...]:
        return tuple((self.endpoint.address, binding) for binding in self.ports)

    def let_go(self) -> None:
        while self.held:
            self.held.pop().close()


class Networks:
    def __init__(self, store: Store, *, bridge: str, subnet: str, exec_root: str, events: EventBus) -> None:
        self._store = store
        self._events = events
        self._bridge = bridge
        self._network = ipaddress.IPv4Network(subnet)
        self._gateway = str(self._network.network_address + 1)
        self._directory = f"{exec_root}/netns"
        self._addresses = Addresses(subnet, reserved=[self._gateway])
        self._firewall = Firewall(bridge, subnet)
        self._plumbing = Plumbing(
            self._firewall,
            bridge=bridge,
            network=self._network,
            gateway=self._gateway,
            directory=self._directory,
        )
        room = max(self._addresses.capacity() // 4, 1)  # a small subnet is not all held back in slots
        least, most = (min(bound, room) for bound in _SLOTS)
        self._slots = Pool(self._make_slot, self._drop_slot, least=least, most=most)
        least, most = _EMPTY_NAMESPACES
        self._namespaces = Pool(self._plumbing.make_namespace, self._plumbing.release, least=least, most=most)
        self._attachments: dict[str, _Attachment] = {}
        self._warnings: tuple[str, ...] = ()
        self._stale: set[str] = set()
        self._empty: dict[str, str] = {}
        self._catalog: dict[str, Network] = {}
        self._installing = asyncio.Lock()
        self._installed = False
        self._stopped = False

    # life

    async def start(self) -> None:
        """Make or find bridge and table, drop what a crash left unrecorded, prepare slots.  A host where
        that fails gets a daemon all the same: the reason is logged, and told to whoever connects."""
        self._catalog = make_catalog(self._store, bridge=self._bridge, subnet=str(self._network))
        for instance_id, endpoint, published in self._store.endpoints():
            self._addresses.reserve(endpoint.address)
            self._attachments[instance_id] = _Attachment(endpoint, published)
        try:
            await self._install()
        except (InsulaError, OSError) as error:
            log.error("no networks for now: %s", error)

    async def stop(self) -> None:
        """Instances keep their network.  With none attached, bridge and table go too.  Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self._plumbing.hurry()
        await self._slots.close()
        await self._namespaces.close()
        await self._plumbing.settled()
        for attachment in self._attachments.values():
            attachment.let_go()
        if self._installed and not self._attachments:
            await self._plumbing.tear_down(directory=not self._empty)
        await self._plumbing.close()
        self._firewall.close()

    async def recover(self, live: Set[str]) -> None:
        """After `start`: instances in `live` keep their network (ports are held again, links plugged in
        again where the bridge was lost), all others lose it."""
        for instance_id in [i for i in (*self._attachments, *self._empty) if i not in live]:
            await self.disconnect(instance_id)
        for instance_id, attachment in self._attachments.items():
            for binding in attachment.ports:
                try:
                    attachment.held.append(ports.hold(binding)[1])
                except Failure as error:
                    log.warning("instance %s keeps its port, but: %s", short_id(instance_id), error)
        if self._installed:
            endpoints = [each.endpoint for each in self._attachments.values()]
            await self._plumbing.plug_in_again(endpoints)

    # what there is

    def find(self, ref: str) -> Network:
        """By name, id or id prefix; `default` is the bridge.  Raises NoSuchNetwork, InvalidRequest."""
        return find_network(self._catalog, ref)

    def warnings(self) -> tuple[str, ...]:
        """What on this host keeps networks from working, for `docker info`."""
        return self._warnings

    def list(self) -> tuple[Network, ...]:
        return tuple(sorted(self._catalog.values(), key=lambda network: network.name))

    def endpoint(self, instance_id: str) -> Endpoint | None:
        attachment = self._attachments.get(instance_id)
        return attachment.endpoint if attachment else None

    def ports(self, instance_id: str) -> tuple[PortBinding, ...]:
        """Published, with the host's ports decided."""
        attachment = self._attachments.get(instance_id)
        return attachment.ports if attachment else ()

    def members(self, network_id: str) -> dict[str, Endpoint]:
        """By instance id."""
        found = {i: each.endpoint for i, each in self._attachments.items()}
        return {i: endpoint for i, endpoint in found.items() if endpoint.network_id == network_id}

    # verbs

    async def connect(
        self, instance_id: str, network: str, kind: LinkKind, *, hostname: str = "", mac: str = ""
    ) -> Endpoint:
        """Give an instance its place on a network.  Raises NoSuchNetwork, InvalidRequest, Conflict, Failure.

        `hostname` is for networks with name lookup; the default bridge has none, as in Docker.
        """
        target = self.find(network)
        if target.driver != "bridge":
            raise InvalidRequest(
                f"network {target.name} has driver {target.driver}: nothing is connected to it"
            )
        if instance_id in self._attachments:
            raise Conflict(f"instance {short_id(instance_id)} is already connected to network {target.name}")
        await self._install()
        if kind is LinkKind.VETH:
            slot = await (self._make_slot_for(mac) if mac else self._slots.take())
        else:
            address = self._addresses.take()
            link = LINK_PREFIX + instance_id[:10]
            slot = Slot(netns="", link=link, address=address, mac=mac or make_mac(address))
        endpoint = Endpoint(
            network_id=target.id,
            network_name=target.name,
            kind=kind,
            link=slot.link,
            interface=INTERFACE,
            mac=slot.mac,
            address=slot.address,
            prefix_len=self._network.prefixlen,
            gateway=self._gateway,
            netns=slot.netns,
            mtu=MTU,
            endpoint_id=make_id(),
        )
        try:
            for stale in list(self._stale):
                self._forget(stale)
            self._store.put_endpoint(instance_id, endpoint)
            self._attachments[instance_id] = _Attachment(endpoint)
            if kind is LinkKind.TAP:
                await self._plumbing.make_tap(slot.link)
        except BaseException:
            self._release(endpoint)
            self._forget(instance_id)
            raise
        self._events.publish(
            "network", "connect", target.id, container=instance_id, name=target.name, type=target.driver
        )
        return endpoint

    async def empty_namespace(self, instance_id: str) -> str:
        """Path of a network namespace with loopback only (`--network none`).  Raises Failure."""
        await self._install()
        path = await self._namespaces.take()
        try:
            with disk_errors(f"noting the namespace of {short_id(instance_id)}"):
                leftovers.own(self._directory, instance_id, path)
        except BaseException:
            self._plumbing.release(path)
            raise
        self._empty[instance_id] = path
        return path

    async def publish(
        self, instance_id: str, endpoint: Endpoint, bindings: Sequence[PortBinding], *, name: str = ""
    ) -> tuple[PortBinding, ...]:
        """Let host ports lead to the instance, all of them or none; returns them with ports decided.

        `name` is the instance's, for the message.  Raises Failure (port taken), InvalidRequest,
        UnsupportedField (IPv6, sctp).
        """
        if not bindings:
            return ()
        attachment = self._attachments.get(instance_id)
        if attachment is None:
            raise Conflict(f"instance {short_id(instance_id)} is connected to no network")
        try:
            held = ports.hold_all(bindings)
        except Failure as error:
            raise Failure(
                "driver failed programming external connectivity on endpoint "
                f"{name or short_id(instance_id)} ({endpoint.endpoint_id}): {error.message}",
                hint=error.hint,
            ) from error
        decided = tuple(binding for binding, _ in held)
        before = attachment.ports
        attachment.ports = before + decided
        try:
            added = [(endpoint.address, binding) for binding in decided]
            if not self._firewall.change(add=added):
                await self._plumbing.install_rules(self._publications())
            self._store.put_endpoint(instance_id, endpoint, attachment.ports)
        except BaseException:
            attachment.ports = before
            self._firewall.change(delete=[(endpoint.address, binding) for binding in decided])
            for _, taken in held:
                taken.close()
            raise
        attachment.held += [taken for _, taken in held]
        if udp := {b.host_port for b in decided if b.protocol == "udp"}:
            # flows seen before, which would go on to the host itself
            await self._plumbing.forget_udp(
                lambda flow: flow.port in udp and flow.answers_from == flow.destination
            )
        return decided

    async def disconnect(self, instance_id: str) -> None:
        """Take everything back: ports now, namespace and link soon after.  Idempotent."""
        if path := self._empty.pop(instance_id, None):
            leftovers.disown(self._directory, instance_id)
            self._plumbing.release(path)
        attachment = self._attachments.get(instance_id)
        if attachment is None:
            return
        self._forget(instance_id)
        if (
            attachment.ports
            and self._installed
            and not self._firewall.change(delete=attachment.publications())
        ):
            await self._plumbing.install_rules(self._publications())
        attachment.let_go()
        endpoint = attachment.endpoint
        if any(binding.protocol == "udp" for binding in attachment.ports):
            await self._plumbing.forget_udp(lambda flow: flow.answers_from == endpoint.address)
        self._release(endpoint)
        self._events.publish(
            "network",
            "disconnect",
            endpoint.network_id,
            container=instance_id,
            name=endpoint.network_name,
            type="bridge",
        )

    # inside

    def _forget(self, instance_id: str) -> None:
        """Also on a full disk, where the record is dropped later: removing things must work there."""
        self._attachments.pop(instance_id, None)
        try:
            self._store.delete_endpoints(instance_id)
            self._stale.discard(instance_id)
        except DiskFull as error:
            log.warning("the endpoint of %s stays recorded for now: %s", short_id(instance_id), error)
            self._stale.add(instance_id)

    def _publications(self) -> tuple[Publication, ...]:
        return tuple(p for each in self._attachments.values() for p in each.publications())

    async def _install(self) -> None:
        """Once per daemon, or again with the next request if it failed."""
        if self._installed:
            return
        async with self._installing:
            if not self._installed:
                endpoints = [each.endpoint for each in self._attachments.values()]
                if problem := await self._plumbing.set_up(endpoints, self._publications()):
                    log.warning("%s", problem)
                    self._warnings = (problem,)
                self._empty.update(await self._plumbing.find_owned())
                self._installed = True
                self._slots.start()
                self._namespaces.start()

    async def _make_slot(self, mac: str = "") -> Slot:
        address = self._addresses.take()
        try:
            return await self._plumbing.make_slot(address, mac or make_mac(address))
        except InsulaError:
            self._addresses.give_back(address)
            raise

    async def _make_slot_for(self, mac: str) -> Slot:
        """One that is in no pool."""
        making = asyncio.ensure_future(self._make_slot(mac))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:  # whoever asked went away
            making.add_done_callback(self._drop_made)
            raise

    def _drop_made(self, making: asyncio.Future[Slot]) -> None:
        if not making.cancelled() and making.exception() is None:
            self._drop_slot(making.result())

    def _drop_slot(self, slot: Slot) -> None:
        self._plumbing.release(slot.netns, slot.link, lambda: self._addresses.give_back(slot.address))

    def _release(self, endpoint: Endpoint) -> None:
        """Its address rests until the link is gone."""
        self._plumbing.release(
            endpoint.netns, endpoint.link, lambda: self._addresses.give_back(endpoint.address)
        )
