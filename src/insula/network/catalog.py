"""The networks that exist, by id, and finding one by what a user calls it.  Synchronous."""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
from collections.abc import Mapping, Sequence

from insula.errors import InvalidRequest, NoSuchNetwork
from insula.model.ids import make_id
from insula.model.network import AddressRange, Network
from insula.network.ranges import choose_range
from insula.store.store import Store


def make_catalog(
    store: Store, *, bridge: str, subnet: str, ipv6: AddressRange | None = None, host_key: str = ""
) -> dict[str, Network]:
    """What the store has, after making sure of Docker's three: bridge, host and none.  `ipv6`: what the
    bridge is to have of it, None for nothing; one that is chosen stays.  Raises InvalidRequest, Forbidden."""
    known = store.networks()
    stored = {network.name: network for network in known if network.predefined}
    gateway = str(ipaddress.IPv4Network(subnet).network_address + 1)
    for name, driver in (("bridge", "bridge"), ("host", "host"), ("none", "null")):
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        network = stored.get(name) or Network(id=make_id(), name=name, driver=driver, created=now)
        if driver == "bridge":
            others = [other for other in known if other.id != network.id]
            network = dataclasses.replace(
                network,
                bridge=bridge,
                subnet=subnet,
                gateway=gateway,
                ipv6=ipv6 is not None,
                range6=_choose6(ipv6, network.range6, others, host_key) if ipv6 is not None else None,
            )
        if network != stored.get(name):
            store.put_network(network)
            stored[name] = network
    return {network.id: network for network in (*known, *stored.values())}


def _choose6(
    asked: AddressRange, known: AddressRange | None, others: Sequence[Network], host_key: str
) -> AddressRange:
    if known is not None and not (asked.subnet or known.chosen_subnet):
        return known
    taken = [ipaddress.ip_network(other.carried6.subnet) for other in others if other.carried6 is not None]
    return choose_range(asked, 6, taken, (), host_key)


def find_network(catalog: Mapping[str, Network], ref: str) -> Network:
    """By id, name or id prefix; "" and `default` mean the bridge.  Raises NoSuchNetwork, and InvalidRequest
    for what several are called, in Docker's words."""
    wanted = "bridge" if ref in ("", "default") else ref
    if wanted in catalog:
        return catalog[wanted]
    named = [network for network in catalog.values() if network.name == wanted]
    found = named or [network for network in catalog.values() if network.id.startswith(wanted)]
    if not found:
        raise NoSuchNetwork(ref)
    if len(found) > 1:
        how = "on name" if named else "based on ID prefix"
        raise InvalidRequest(f"network {ref} is ambiguous ({len(found)} matches found {how})")
    return found[0]


def reference(catalog: Mapping[str, Network], network: Network) -> str:
    """What it alone is called: its name, unless another network has that, too; then its id."""
    same = [other for other in catalog.values() if other.name == network.name]
    return network.name if len(same) < 2 else network.id


def created_ns(network: Network) -> int:
    """0 for one that does not say."""
    try:
        made = datetime.datetime.fromisoformat(network.created)
    except ValueError:
        return 0
    return int(made.timestamp() * 1_000_000) * 1000
