"""The networks themselves: bridges and parents, name servers and rules, made and taken down.  Async.

Not for who is on them (`networks`), whom it only asks about.  A network is in the store before its bridge is
made, and until after that is gone: what a crash cuts short is made again at the next start.  A parent is
looked for anew whenever somebody joins: it is the host's, and may come and go.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterator, Sequence

from insula.errors import Failure, Forbidden, InsulaError, NoSuchNetwork
from insula.events import EventBus
from insula.model.ids import short_id
from insula.model.network import AddressRange, Endpoint, Network, NetworkRequest
from insula.model.reports import PruneFilters, PruneReport
from insula.network.bridge import BridgeOrder
from insula.network.catalog import created_ns, find_network, make_catalog, reference
from insula.network.definition import define_network
from insula.network.directory import Directory
from insula.network.firewall import Firewall
from insula.network.joining import name_neighbours
from insula.network.names import read_resolv_conf
from insula.network.plumbing import Plumbing
from insula.network.resolver import Resolver
from insula.network.segments import Member, Segment, make_segment
from insula.store.store import Store

log = logging.getLogger(__name__)

_HINT = "start with another --bridge or --subnet"
_HINT_OF_OWN = "remove the network, or what uses its bridge or subnet"
_MACHINE_ID = "/etc/machine-id"


class Fabric:
    def __init__(
        self,
        store: Store,
        events: EventBus,
        members: dict[str, Member],
        *,
        bridge: str,
        subnet: str,
        ipv6: AddressRange | None,
        directory: str,
    ) -> None:
        """`members`, by instance id, are kept by who connects them; `directory` is for namespaces.  `ipv6`:
        what the default bridge is to have of it."""
        self._store = store
        self._events = events
        self._members = members
        self._bridge = bridge
        self._subnet = str(ipaddress.IPv4Network(subnet))
        self._ipv6 = ipv6
        self.firewall = Firewall(bridge)
        self.plumbing = Plumbing(self.firewall, directory=directory)
        self._catalog: dict[str, Network] = {}
        self._segments: dict[str, Segment] = {}
        self._names = Directory()
        self._resolver = Resolver(self._names, read_resolv_conf)
        self._warnings: dict[str, str] = {}
        self._alias = f"insula {bridge}"  # on what is made for networks without a bridge: this daemon's
        self.changing = asyncio.Lock()
        self._told: dict[str, tuple[tuple[str, str], ...]] = {}
        self.on_neighbours: Callable[[str], None] = lambda instance_id: None

    # life

    def load(self) -> None:
        """What the store has; makes nothing but its records of Docker's three.  Raises InvalidRequest,
        Forbidden."""
        self._catalog = make_catalog(
            self._store, bridge=self._bridge, subnet=self._subnet, ipv6=self._ipv6, host_key=_host_key()
        )
        self._segments = {
            network.id: make_segment(network, self._alias)
            for network in self._catalog.values()
            if network.driver == "bridge" or network.on_parent
        }

    async def set_up(self) -> None:
        """Bridges, name servers and rules; a network of one's own that fails is passed over.  Raises
        Failure, Unavailable, ProgramMissing, ProgramFailed."""
        await self.plumbing.set_up({member.netns for member in self._members.values()})
        for segment in self._segments.values():
            if segment.index:
                continue
            try:
                await self._open(segment)
                segment.problem = None
            except InsulaError as error:
                if segment.network.predefined:
                    raise
                log.error("network %s does not work: %s", segment.network.name, error)
                if not segment.network.on_parent:
                    segment.problem = error
        await self.write_rules()
        for segment in self._segments.values():
            if segment.index:
                await self._look_for_problems(segment)

    async def plug_in_again(self, endpoints: Sequence[Endpoint]) -> None:
        """Links of instances that run, where their bridge was lost."""
        found = ((endpoint, self._segments.get(endpoint.network_id)) for endpoint in endpoints)
        seats = [(endpoint, segment.seat) for endpoint, segment in found if segment is not None]
        bridges = {segment.index for segment in self._segments.values() if segment.index}
        await self.plumbing.plug_in_again(seats, bridges, self._alias)

    async def fall_silent(self) -> None:
        """Names are not answered any more: the daemon ends."""
        await self._resolver.stop()

    async def tear_down(self, *, directory: bool) -> None:
        """Once nothing is attached; `directory`: nor any namespace kept."""
        bridges = [segment.network.bridge for segment in self._segments.values() if segment.index]
        parents = [segment.parent_order for segment in self._segments.values() if segment.parent is not None]
        await self.plumbing.tear_down(bridges, parents, directory=directory)

    # what there is

    def find(self, ref: str) -> Network:
        """Raises NoSuchNetwork, InvalidRequest."""
        return find_network(self._catalog, ref)

    def reference(self, network: Network) -> str:
        return reference(self._catalog, network)

    def list(self) -> tuple[Network, ...]:
        return tuple(sorted(self._catalog.values(), key=lambda network: network.name))

    def warnings(self) -> tuple[str, ...]:
        return tuple(self._warnings.values())

    def segment(self, network_id: str) -> Segment | None:
        return self._segments.get(network_id)

    def default(self) -> Segment:
        return next(segment for segment in self._segments.values() if segment.network.predefined)

    def members(self, network_id: str) -> dict[str, Endpoint]:
        return {
            instance_id: member.endpoints[network_id]
            for instance_id, member in self._members.items()
            if network_id in member.endpoints
        }

    @contextlib.contextmanager
    def joining(self, network: Network) -> Iterator[Segment]:
        """A network that is being joined cannot be removed.  Raises Failure."""
        segment = self._segments.get(network.id)
        if segment is None:
            raise Failure(f"network {network.name} is being removed")
        if segment.problem is not None:
            raise segment.problem
        segment.joining += 1
        try:
            yield segment
        finally:
            segment.joining -= 1

    # changes

    async def create(self, request: NetworkRequest) -> Network:
        """Raises InvalidRequest, UnsupportedField, Forbidden, Conflict, NotFound, Unavailable, Failure."""
        async with self.changing:
            routes, links = await self.plumbing.look_around()
            network = define_network(request, self.list(), routes, links=links, host_key=_host_key())
            segment = make_segment(network, self._alias)
            async with contextlib.AsyncExitStack() as undo:
                undo.callback(self._store.delete_network, network.id)
                self._store.put_network(network)  # first: a bridge without a record would stay for good
                undo.push_async_callback(self._close, segment)
                await self._open(segment)
                self._catalog[network.id], self._segments[network.id] = network, segment
                undo.callback(self._segments.pop, network.id)
                undo.callback(self._catalog.pop, network.id)
                if segment.index:
                    await self.write_rules()
                undo.pop_all()
            if segment.index:
                await self._look_for_problems(segment)
        self._events.publish("network", "create", network.id, name=network.name, type=network.driver)
        return network

    async def remove(self, ref: str) -> None:
        """Raises NoSuchNetwork, InvalidRequest, Forbidden for a predefined one or one that is in use."""
        async with self.changing:
            network = self.find(ref)
            if network.predefined:
                raise Forbidden(f"{network.name} is a pre-defined network and cannot be removed")
            segment = self._segments[network.id]
            if holders := self._holders(network.id):
                raise Forbidden(
                    f"error while removing network: network {network.name} has active endpoints "
                    f"({', '.join(holders)})",
                    hint="disconnect them first, or stop them",
                )
            if segment.joining:
                raise Forbidden(f"error while removing network: network {network.name} has active endpoints")
            del self._segments[network.id]
            try:
                await self._close(segment)
                self._store.delete_network(network.id)  # last: until then `start` would make it again
            except BaseException:
                self._segments[network.id] = segment
                with contextlib.suppress(InsulaError):
                    await self._open(segment)
                raise
            del self._catalog[network.id]
            self._warnings.pop(network.id, None)
            if not network.on_parent:
                await self.write_rules()
        self._events.publish("network", "destroy", network.id, name=network.name, type=network.driver)

    def _holders(self, network_id: str) -> Sequence[str]:
        return [
            f'name:"{endpoint.names[0] if endpoint.names else short_id(instance_id)}" '
            f'id:"{short_id(endpoint.endpoint_id)}"'
            for instance_id, endpoint in self.members(network_id).items()
        ]

    async def prune(self, filters: PruneFilters) -> PruneReport:
        """Remove those of one's own that no running instance is on.  Names in the report, as Docker's."""
        deleted = []
        for network in self.list():
            segment = self._segments.get(network.id)
            if segment is None or network.predefined or self.members(network.id) or segment.joining:
                continue
            if filters.matches(created_ns(network), network.labels):
                with contextlib.suppress(Forbidden, NoSuchNetwork):  # it is in use, or gone, since then
                    await self.remove(network.id)
                    deleted.append(network.name)
        self._events.publish("network", "prune", "", reclaimed="0")
        return PruneReport(deleted=tuple(deleted))

    async def _open(self, segment: Segment) -> None:
        """Its bridge and, on a network of one's own, its resolver; or its parent.  Raises Failure,
        InvalidRequest, Unavailable."""
        network = segment.network
        if network.on_parent:
            await self.find_parent(segment)
            return
        anew = not any(network.id in member.endpoints for member in self._members.values())
        carried = network.carried6
        segment.index = await self.plumbing.make_bridge(
            BridgeOrder(
                name=network.bridge,
                subnet=network.subnet,
                gateway=network.gateway,
                mtu=network.mtu,
                anew=anew,
                hint=_HINT if network.predefined else _HINT_OF_OWN,
                subnet6=carried.subnet if carried is not None else "",
                gateway6=carried.gateway if carried is not None else "",
            )
        )
        if not network.predefined:
            try:
                segment.resolver = await self._resolver.listen(network.id, network.gateway)
            except OSError as error:
                raise Failure(f"cannot answer names at {network.gateway}: {error.strerror}") from error

    async def find_parent(self, segment: Segment) -> None:
        """As it is now, made where it is missing and can be.  Raises Failure, InvalidRequest, Unavailable."""
        segment.parent = await self.plumbing.find_or_make_parent(segment.parent_order)

    async def _close(self, segment: Segment) -> None:
        if segment.network.on_parent:
            others = [other for other in self._segments.values() if other is not segment]
            if all(other.network.parent != segment.network.parent for other in others):
                await self.plumbing.remove_parent(segment.parent_order)
            segment.parent = None
            return
        self._resolver.close(segment.network.id)
        await self.plumbing.remove_bridge(segment.network.bridge)
        segment.index = segment.resolver = 0

    async def _look_for_problems(self, segment: Segment) -> None:
        network = segment.network
        if problem := await self.plumbing.find_problem(network.bridge, ipv6=network.carried6 is not None):
            log.warning("%s", problem)
            self._warnings[segment.network.id] = problem

    async def write_rules(self) -> None:
        """All of them anew."""
        zones = [segment.zone for segment in self._segments.values() if segment.index]
        publications = [each for member in self._members.values() for each in member.publications()]
        await self.plumbing.install_rules(zones, publications)

    async def answer_inside(self, netns: str) -> None:
        """Names, to who is in this namespace.  Idempotent.  Raises Failure, ProgramMissing, ProgramFailed."""
        if not self._resolver.is_inside(netns):
            pair = await self.plumbing.open_stub(netns)
            try:
                await self._resolver.listen_inside(netns, pair)
            except BaseException:
                for each in pair:
                    each.close()
                raise

    def silence(self, netns: str) -> None:
        """The reverse: a socket would keep the namespace.  Idempotent."""
        self._resolver.close(netns)

    def update_names(self) -> None:
        """After every change of the members."""
        self._names.replace(tuple(member.endpoints.values()) for member in self._members.values())
        before, self._told = self._told, {}
        for instance_id in tuple(self._members):
            if names := name_neighbours(self._members, instance_id):
                self._told[instance_id] = names
            if before.get(instance_id, ()) != names:
                self.on_neighbours(instance_id)


def _host_key() -> str:
    """What tells this host from others, so that their IPv6 subnets differ."""
    try:
        with open(_MACHINE_ID, encoding="ascii", errors="replace") as file:
            return file.read().strip() or socket.gethostname()
    except OSError:
        return socket.gethostname()
