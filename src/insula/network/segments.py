"""A network that carries instances: its addresses, its bridge or parent as it is now, and who is on it.
Pure, but that members hold the sockets of their published ports."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from insula.errors import InsulaError
from insula.model.network import Endpoint, Network, PortBinding
from insula.network.addresses import Addresses
from insula.network.firewall import Publication, Zone
from insula.network.parents import Parent, ParentOrder
from insula.network.places import Place
from insula.network.relays import Target
from insula.network.slots import Seat


@dataclass(slots=True, eq=False)
class Segment:
    """`index` of the bridge in the kernel, 0 while there is none; `problem` says why.  On a parent there is
    none ever: `parent` is that, as it was found last.  `alias` of what we make for it.  `joining`: connects
    that are under way.  `resolver`: the port at the gateway that answers names, 0 for none.  `resting`:
    addresses of links that are going."""

    network: Network
    addresses: Addresses
    index: int = 0
    joining: int = 0
    resolver: int = 0
    problem: InsulaError | None = None
    addresses6: Addresses | None = None
    resting: set[str] = field(default_factory=set)
    parent: Parent | None = None
    alias: str = ""

    @property
    def gateways(self) -> tuple[str, str]:
        """The way out for IPv4 and for IPv6; "" for none."""
        carried = self.network.carried6
        if not self.network.leads_out:
            return "", ""
        return self.network.gateway, carried.gateway if carried is not None else ""

    @property
    def seat(self) -> Seat:
        network, carried = self.network, self.network.carried6
        return Seat(
            bridge_index=self.index,
            place=self._place,
            mtu=self._mtu,
            isolated=not network.icc,
            prefix_len=_prefix_len(network.subnet),
            prefix_len6=_prefix_len(carried.subnet) if carried is not None else 0,
            gateways=tuple(filter(None, self.gateways)),
        )

    @property
    def _mtu(self) -> int:
        return self.parent.mtu if self.parent is not None and not self.network.has_mtu else self.network.mtu

    @property
    def _place(self) -> Place | None:
        network = self.network
        if self.parent is None:
            return None
        return Place(
            parent=network.parent,
            index=self.parent.index,
            driver=network.driver,
            mode=network.mode,
            flag=network.flag,
            alias=self.alias,
        )

    @property
    def parent_order(self) -> ParentOrder:
        return ParentOrder(name=self.network.parent, own=self.network.has_own_parent, alias=self.alias)

    def take(self, address: str = "", address6: str = "") -> tuple[str, str]:
        """One of each family, chosen or the next; "" for a family that the network does not carry.  All or
        none.  Raises Failure, Forbidden, InvalidRequest."""
        taken = self.addresses.take_chosen(address) if address else self.addresses.take()
        if self.addresses6 is None:
            return taken, ""
        try:
            return taken, self.addresses6.take_chosen(address6) if address6 else self.addresses6.take()
        except BaseException:
            self.addresses.give_back(taken)
            raise

    def chosen6(self, address6: str) -> str:
        """Of a network whose IPv6 is only kept and shown it has no effect."""
        return address6 if self.addresses6 is not None else ""

    def reserve(self, address: str, address6: str) -> None:
        self.addresses.reserve(address)
        if address6 and self.addresses6 is not None:
            self.addresses6.reserve(address6)

    def give_back(self, address: str, address6: str) -> None:
        self.resting -= {address, address6}
        self.addresses.give_back(address)
        if address6 and self.addresses6 is not None:
            self.addresses6.give_back(address6)

    @property
    def zone(self) -> Zone:
        network, carried = self.network, self.network.carried6
        return Zone(
            bridge=network.bridge,
            subnet=network.subnet,
            gateway=network.gateway,
            internal=network.internal,
            icc=network.icc,
            masquerade=network.masquerade,
            resolver=self.resolver,
            subnet6=carried.subnet if carried is not None else "",
        )


def _prefix_len(subnet: str) -> int:
    return int(subnet.rpartition("/")[2])


def make_segment(network: Network, alias: str = "") -> Segment:
    reserved = [network.gateway, *network.aux_addresses.values()]
    if network.predefined:
        remedy = "remove instances, or start the daemon with a larger --subnet, or --fixed-cidr-v6"
    else:
        remedy = "disconnect or remove instances, or use a network with a larger --subnet or --ip-range"
    addresses = Addresses(network.subnet, reserved, ip_range=network.ip_range, remedy=remedy)
    segment = Segment(network, addresses, alias=alias)
    if (carried := network.carried6) is not None:
        reserved = [carried.gateway, *carried.aux_addresses.values()]
        segment.addresses6 = Addresses(carried.subnet, reserved, ip_range=carried.ip_range, remedy=remedy)
    return segment


@dataclass(slots=True, eq=False)
class Member:
    """One instance: its endpoints by network id, in the order in which it got them.  Its ports are published
    at the address of the endpoint that is its gateway to everywhere else, and follow when that changes."""

    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    ports: tuple[PortBinding, ...] = ()
    held: list[tuple[PortBinding, socket.socket]] = field(default_factory=list)

    def gateway(self) -> Endpoint | None:
        """As libnetwork chooses: of the networks that lead out, the one whose name comes first."""
        leading_out = [endpoint for endpoint in self.endpoints.values() if endpoint.gateway]
        return min(leading_out, key=lambda endpoint: endpoint.network_name, default=None)

    def gateway6(self) -> Endpoint | None:
        """The same for IPv6."""
        leading_out = [endpoint for endpoint in self.endpoints.values() if endpoint.gateway6]
        return min(leading_out, key=lambda endpoint: endpoint.network_name, default=None)

    def publisher(self) -> Endpoint | None:
        """Where its ports are published: as in Docker nowhere if its gateway is beside the host."""
        gateway = self.gateway()
        return None if gateway is None or gateway.on_parent else gateway

    @property
    def stub(self) -> str:
        """The namespace in which its names are answered, "" for none."""
        return next((e.netns for e in self.endpoints.values() if e.on_parent and e.netns), "")

    def ways_out(self) -> Ways:
        return Ways(self.gateway(), self.gateway6())

    def shown(self) -> tuple[Endpoint, ...]:
        """The endpoints, with what depends on the others filled in."""
        ways = self.ways_out()
        return tuple(
            dataclasses.replace(
                endpoint,
                default_route=endpoint is ways.ipv4,
                default_route6=endpoint is ways.ipv6 or not endpoint.gateway6,
            )
            for endpoint in self.endpoints.values()
        )

    @property
    def netns(self) -> str:
        return next((endpoint.netns for endpoint in self.endpoints.values() if endpoint.netns), "")

    @property
    def is_named(self) -> bool:
        """It is on a network that has names."""
        return any(endpoint.is_named for endpoint in self.endpoints.values())

    def free_interface(self) -> str:
        taken = {endpoint.interface for endpoint in self.endpoints.values()}
        return next(name for n in range(len(taken) + 1) if (name := f"eth{n}") not in taken)

    def ports_at(self, network_id: str) -> tuple[PortBinding, ...]:
        """To be stored with the endpoint on this network."""
        gateway = self.gateway()
        return self.ports if gateway is not None and gateway.network_id == network_id else ()

    def publications(self) -> tuple[Publication, ...]:
        return self.ways_out().publications(self.ports)

    def relays(self) -> dict[socket.socket, Target]:
        """Where what comes to the sockets of its ports is to be carried: those of IPv6.  Not SCTP's:
        what it says in messages and on several streams would become one stream of bytes."""
        ways = self.ways_out()
        return {
            taken: Target(binding.protocol, address, binding.container_port)
            for binding, taken in self.held
            if binding.is_ipv6 and binding.protocol != "sctp" and (address := ways.target(binding))
        }

    def let_go(self) -> None:
        while self.held:
            self.held.pop()[1].close()


@dataclass(frozen=True, slots=True)
class Ways:
    """An instance's ways out, by family."""

    ipv4: Endpoint | None
    ipv6: Endpoint | None

    @property
    def gateways(self) -> tuple[str, ...]:
        found = (self.ipv4.gateway if self.ipv4 else "", self.ipv6.gateway6 if self.ipv6 else "")
        return tuple(filter(None, found))

    def target(self, binding: PortBinding) -> str:
        """The instance's address that it leads to; "" for one that is on internal networks only, or whose
        way out is beside the host's."""
        if binding.is_ipv6 and self.ipv6 is not None and not self.ipv6.on_parent:
            return self.ipv6.address6
        return self.ipv4.address if self.ipv4 is not None and not self.ipv4.on_parent else ""

    def publications(self, ports: Iterable[PortBinding]) -> tuple[Publication, ...]:
        return tuple((address, binding) for binding in ports if (address := self.target(binding)))
