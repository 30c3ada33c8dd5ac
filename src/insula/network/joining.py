"""An instance's place on a network, decided: what it may ask for, and what it gets.  Pure.

The wording is moby's where clients may look at it.
"""

from __future__ import annotations

from collections.abc import Mapping

from insula.errors import InvalidRequest, UnsupportedField
from insula.model.network import Endpoint, LinkKind, Network, Wanted
from insula.network.addresses import make_mac
from insula.network.segments import Member
from insula.network.slots import Slot
from insula.network.stubs import ADDRESS as STUB_ADDRESS


def check_place(network: Network, kind: LinkKind, wanted: Wanted) -> None:
    """Whether the network can have it, as it wants to be.  Raises InvalidRequest, UnsupportedField."""
    if network.driver != "bridge" and not network.on_parent:
        raise InvalidRequest(
            f"network {network.name} has driver {network.driver}: nothing is connected to it"
        )
    if network.driver == "ipvlan" and kind is LinkKind.TAP:
        raise InvalidRequest(
            f"network {network.name} is of driver ipvlan, which knows its members by addresses that the "
            "host's kernel has set: a virtual machine sets its own",
            hint="use a macvlan network, or isolation process",
        )
    if network.driver == "ipvlan" and wanted.mac:
        raise UnsupportedField("MacAddress", "ipvlan interfaces do not support custom mac address assignment")


def mac_on(network: Network, wanted: Wanted, address: str) -> str:
    """ "" where it is the parent's."""
    return wanted.mac or (make_mac(address) if network.driver != "ipvlan" else "")


def resolver_on(network: Network, kind: LinkKind) -> str:
    """Who answers names there, "" for nobody: without a bridge a VM has nobody of ours within its reach."""
    if network.predefined:
        return ""
    if not network.on_parent:
        return network.gateway
    return STUB_ADDRESS if kind is LinkKind.VETH else ""


def name_neighbours(members: Mapping[str, Member], instance_id: str) -> tuple[tuple[str, str], ...]:
    """(address, names) of those that share a network with an instance which has nobody to ask for them: for
    its /etc/hosts.  () for one that has."""
    own = members[instance_id].endpoints.values() if instance_id in members else ()
    shared = {endpoint.network_id for endpoint in own if endpoint.on_parent}
    if not shared or any(endpoint.resolver for endpoint in own):
        return ()
    found = []
    for other_id, other in members.items():
        for endpoint in other.endpoints.values():
            if other_id == instance_id or endpoint.network_id not in shared or not endpoint.names:
                continue
            names = " ".join((*endpoint.names, f"{endpoint.names[0]}.{endpoint.network_name}"))
            found += [(address, names) for address in (endpoint.address, endpoint.address6) if address]
    return tuple(sorted(found))


def check_addresses(network: Network, wanted: Wanted) -> None:
    """Chosen ones need a chosen range, in Docker's words.  Raises InvalidRequest."""
    range6 = network.range6
    refused4 = wanted.address and not network.chosen_subnet
    refused6 = wanted.address6 and not (range6 is not None and range6.chosen_subnet)
    if refused4 or refused6:
        raise InvalidRequest(
            f"invalid config for network {network.name}: invalid endpoint settings:\n"
            "user specified IP address is supported only when connecting to networks with user "
            "configured subnets",
            hint=f"create the network with {'--subnet' if refused4 else '--ipv6 --subnet, of IPv6'}",
        )


def slot_of(endpoint: Endpoint) -> Slot:
    return Slot(
        netns=endpoint.netns,
        link=endpoint.link,
        address=endpoint.address,
        mac=endpoint.mac,
        address6=endpoint.address6,
        more=endpoint.more,
        interface=endpoint.interface,
    )
