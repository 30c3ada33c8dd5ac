"""The networks that exist, by id, and finding one by what a user calls it.  Synchronous."""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
from collections.abc import Mapping

from insula.errors import InvalidRequest, NoSuchNetwork
from insula.model.ids import make_id
from insula.model.network import Network
from insula.store.store import Store


def make_catalog(store: Store, *, bridge: str, subnet: str) -> dict[str, Network]:
    """What the store has, after making sure of Docker's three: bridge, host and none."""
    stored = {network.name: network for network in store.networks()}
    gateway = str(ipaddress.IPv4Network(subnet).network_address + 1)
    for name, driver in (("bridge", "bridge"), ("host", "host"), ("none", "null")):
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        network = stored.get(name) or Network(id=make_id(), name=name, driver=driver, created=now)
        if driver == "bridge":
            network = dataclasses.replace(network, bridge=bridge, subnet=subnet, gateway=gateway)
        if network != stored.get(name):
            store.put_network(network)
            stored[name] = network
    return {network.id: network for network in stored.values()}


def find_network(catalog: Mapping[str, Network], ref: str) -> Network:
    """By name, id or unambiguous id prefix; "" and `default` mean the bridge."""
    wanted = "bridge" if ref in ("", "default") else ref
    for network in catalog.values():
        if wanted in (network.name, network.id):
            return network
    found = [network for network in catalog.values() if network.id.startswith(wanted)]
    if not found:
        raise NoSuchNetwork(ref)
    if len(found) > 1:
        raise InvalidRequest(f"network {ref} is ambiguous ({len(found)} matches found based on ID prefix)")
    return found[0]


def created_ns(network: Network) -> int:
    """0 for one that does not say."""
    try:
        made = datetime.datetime.fromisoformat(network.created)
    except ValueError:
        return 0
    return int(made.timestamp() * 1_000_000) * 1000
