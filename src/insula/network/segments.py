"""A network that carries instances: its addresses, its bridge as it is now, and who is on it.  Pure, but that
members hold the sockets of their published ports."""

from __future__ import annotations

import dataclasses
import socket
from dataclasses import dataclass, field

from insula.errors import InsulaError
from insula.model.network import Endpoint, Network, PortBinding
from insula.network.addresses import Addresses
from insula.network.firewall import Publication, Zone
from insula.network.slots import Seat


@dataclass(slots=True, eq=False)
class Segment:
    """`index` of the bridge in the kernel, 0 while there is none; `problem` says why.  `joining`: connects
    that are under way.  `resolver`: the port at the gateway that answers names, 0 for none."""

    network: Network
    addresses: Addresses
    index: int = 0
    joining: int = 0
    resolver: int = 0
    problem: InsulaError | None = None

    @property
    def prefix_len(self) -> int:
        return int(self.network.subnet.rpartition("/")[2])

    @property
    def seat(self) -> Seat:
        return Seat(bridge_index=self.index, mtu=self.network.mtu, isolated=not self.network.icc)

    @property
    def zone(self) -> Zone:
        network = self.network
        return Zone(
            bridge=network.bridge,
            subnet=network.subnet,
            gateway=network.gateway,
            internal=network.internal,
            icc=network.icc,
            masquerade=network.masquerade,
            resolver=self.resolver,
        )


def make_segment(network: Network) -> Segment:
    reserved = [network.gateway, *network.aux_addresses.values()]
    if network.predefined:
        return Segment(network, Addresses(network.subnet, reserved))
    remedy = "disconnect or remove instances, or use a network with a larger --subnet or --ip-range"
    return Segment(network, Addresses(network.subnet, reserved, ip_range=network.ip_range, remedy=remedy))


@dataclass(slots=True, eq=False)
class Member:
    """One instance: its endpoints by network id, in the order in which it got them.  Its ports are published
    at the address of the endpoint that is its gateway to everywhere else, and follow when that changes."""

    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    ports: tuple[PortBinding, ...] = ()
    held: list[socket.socket] = field(default_factory=list)

    def gateway(self) -> Endpoint | None:
        """As libnetwork chooses: of the networks that lead out, the one whose name comes first."""
        leading_out = [endpoint for endpoint in self.endpoints.values() if endpoint.gateway]
        return min(leading_out, key=lambda endpoint: endpoint.network_name, default=None)

    def shown(self) -> tuple[Endpoint, ...]:
        """The endpoints, with what depends on the others filled in."""
        gateway = self.gateway()
        return tuple(
            dataclasses.replace(endpoint, default_route=endpoint is gateway)
            for endpoint in self.endpoints.values()
        )

    @property
    def netns(self) -> str:
        return next((endpoint.netns for endpoint in self.endpoints.values() if endpoint.netns), "")

    @property
    def is_named(self) -> bool:
        """It is on a network that has names."""
        return any(endpoint.resolver for endpoint in self.endpoints.values())

    def free_interface(self) -> str:
        taken = {endpoint.interface for endpoint in self.endpoints.values()}
        return next(name for n in range(len(taken) + 1) if (name := f"eth{n}") not in taken)

    def ports_at(self, network_id: str) -> tuple[PortBinding, ...]:
        """To be stored with the endpoint on this network."""
        gateway = self.gateway()
        return self.ports if gateway is not None and gateway.network_id == network_id else ()

    def publications(self) -> tuple[Publication, ...]:
        gateway = self.gateway()
        return tuple((gateway.address, binding) for binding in self.ports) if gateway is not None else ()

    def let_go(self) -> None:
        while self.held:
            self.held.pop().close()
