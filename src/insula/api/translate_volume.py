"""Volumes and networks as Docker shows them.  Pure."""

from __future__ import annotations

from typing import Any

from insula.api.times import ZERO, format_time
from insula.api.versions import NEWEST, Version
from insula.engine.types import InstanceView
from insula.model.network import (
    BRIDGE_OPTION,
    HOST_IP_OPTION,
    ICC_OPTION,
    MASQUERADE_OPTION,
    MTU_OPTION,
    AddressRange,
    Network,
)
from insula.model.volume import Volume


def render_volume(volume: Volume) -> dict[str, Any]:
    return {
        "CreatedAt": format_time(volume.created_ns),
        "Driver": "local",
        "Labels": volume.labels or None,
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Options": volume.options or None,
        "Scope": "local",
    }


def render_network(
    network: Network, views: tuple[InstanceView, ...] | None = None, version: Version = NEWEST
) -> dict[str, Any]:
    """`views`: the instances to look for in `Containers`; None leaves it empty (the list does)."""
    ipam = [_range(network)] if network.subnet else []
    if network.range6 is not None:
        ipam.append(_range(network.range6))
    options = dict(network.options)
    if network.name == "bridge" and network.bridge:
        options |= {
            BRIDGE_OPTION: network.bridge,
            "com.docker.network.bridge.default_bridge": "true",
            ICC_OPTION: "true",
            MASQUERADE_OPTION: "true",
            HOST_IP_OPTION: "0.0.0.0",
            MTU_OPTION: str(network.mtu),
        }
    containers = {
        view.instance.id: {
            "Name": view.instance.name,
            "EndpointID": e.endpoint_id,
            "MacAddress": e.mac,
            "IPv4Address": f"{e.address}/{e.prefix_len}" if e.address else "",
            "IPv6Address": f"{e.address6}/{e.prefix_len6}" if e.address6 else "",
        }
        for view in views or ()
        for e in view.endpoints
        if e.network_id == network.id
    }
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": network.created or ZERO,
        "Scope": "local",
        "Driver": network.driver,
        **({"EnableIPv4": True} if version >= (1, 47) else {}),
        "EnableIPv6": network.ipv6,
        "IPAM": {"Driver": "default", "Options": network.ipam_options or None, "Config": ipam},
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": containers,
        "Options": options,
        "Labels": network.labels,
    }


def _range(of: Network | AddressRange) -> dict[str, Any]:
    config: dict[str, Any] = {"Subnet": of.subnet}
    if of.ip_range:
        config["IPRange"] = of.ip_range
    config["Gateway"] = of.gateway
    if of.aux_addresses:
        config["AuxiliaryAddresses"] = of.aux_addresses
    return config
