"""What a network is to be, decided from a request, the networks that exist and the host's routes.  Pure.

The wording is moby's where clients may look at it (libnetwork, daemon/network.go).
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Collection

from insula.errors import Conflict, Forbidden, InvalidRequest, NotFound, Unavailable, UnsupportedField
from insula.model.ids import make_id
from insula.model.network import (
    BRIDGE_OPTION,
    DEFAULT_MTU,
    HOST_IP_OPTION,
    ICC_OPTION,
    IPVLAN_FLAG_OPTION,
    IPVLAN_MODE_OPTION,
    MACVLAN_MODE_OPTION,
    MASQUERADE_OPTION,
    MTU_OPTION,
    ON_PARENT,
    PARENT_OPTION,
    PREDEFINED,
    AddressRange,
    Network,
    NetworkRequest,
    is_bool,
)
from insula.network.ranges import IPNetwork, choose_range
from insula.system.sublinks import IPVLAN_FLAGS, IPVLAN_MODES, MACVLAN_MODES

BRIDGE_PREFIX = "br-"
_ID_DIGITS = 12  # with the prefix, what the kernel allows for a link's name

_LEAST_MTU, _LEAST_MTU6, _MOST_MTU = 68, 1280, 65535
_LINK = re.compile(r"[^\s/:\x00-\x1f]{1,15}")
_NAME = re.compile(r"[^\x00-\x1f]{1,255}")
_OWN_OPTIONS = "com.docker.network."
_OPTIONS = {
    "bridge": (BRIDGE_OPTION, ICC_OPTION, MASQUERADE_OPTION, HOST_IP_OPTION, MTU_OPTION),
    "macvlan": (PARENT_OPTION, MACVLAN_MODE_OPTION, MTU_OPTION),
    "ipvlan": (PARENT_OPTION, IPVLAN_MODE_OPTION, IPVLAN_FLAG_OPTION, MTU_OPTION),
}
_OF_SOME_DRIVER = frozenset(option for options in _OPTIONS.values() for option in options)


def define_network(
    request: NetworkRequest,
    existing: Collection[Network],
    routes: Collection[IPNetwork],
    *,
    links: Collection[str] = (),
    host_key: str = "",
) -> Network:
    """`routes` are the host's, `links` the names of its links; `host_key` see `choose_range`.  Raises
    InvalidRequest, UnsupportedField, Forbidden, Conflict, NotFound, Unavailable."""
    _check_name(request.name, existing if request.unique else ())
    driver = _check_driver(request.driver)
    network_id = make_id()
    options = check_options(request.options, driver)
    if request.ipv6 and int(options.get(MTU_OPTION, DEFAULT_MTU)) < _LEAST_MTU6:
        raise InvalidRequest(f"Options.{MTU_OPTION}: IPv6 needs at least {_LEAST_MTU6}")
    taken = [ipaddress.ip_network(subnet) for network in existing for subnet in _subnets(network)]
    asked = AddressRange(
        subnet=request.subnet,
        gateway=request.gateway,
        ip_range=request.ip_range,
        aux_addresses=request.aux_addresses,
    )
    # on a parent a subnet that is named is the wire's own, to which the host has a route
    in_use = () if driver in ON_PARENT and request.subnet else routes
    range4, range6 = choose_range(asked, 4, taken, in_use, host_key), request.range6
    if request.ipv6:
        asked6 = range6 or AddressRange()
        in_use = () if driver in ON_PARENT and asked6.subnet else routes
        range6 = choose_range(asked6, 6, taken, in_use, host_key)
    elif range6 is not None:  # only kept
        range6 = choose_range(range6, 6, (), (), host_key)
    made = Network(
        id=network_id,
        name=request.name,
        driver=driver,
        bridge=_choose_bridge(options, network_id, existing, links) if driver == "bridge" else "",
        subnet=range4.subnet,
        gateway=range4.gateway,
        internal=request.internal,
        attachable=request.attachable,
        labels=request.labels,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        ip_range=range4.ip_range,
        aux_addresses=range4.aux_addresses,
        options=options,
        chosen_subnet=range4.chosen_subnet,
        ipv6=request.ipv6,
        range6=range6,
        ipam_options=request.ipam_options,
    )
    check_sharing(made, existing)
    return made


def _subnets(network: Network) -> tuple[str, ...]:
    carried = network.carried6
    return tuple(filter(None, (network.subnet, carried.subnet if carried else "")))


def _check_name(name: str, existing: Collection[Network]) -> None:
    if not name.strip():
        raise InvalidRequest("invalid network name: name is empty")
    if name in PREDEFINED or name == "default":
        raise Forbidden(f"operation is not permitted on predefined {name} network")
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"invalid network name: {name[:64]!r}", hint="no control characters, and 255 at most"
        )
    if any(network.name == name for network in existing):
        raise Conflict(f"network with name {name} already exists")


def _check_driver(driver: str) -> str:
    if driver in ("", "bridge", "default"):
        return "bridge"
    if driver in ON_PARENT:
        return driver
    if driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    if driver == "overlay":
        raise Unavailable("This node is not a swarm manager: an overlay network needs a swarm")
    raise NotFound(f"could not find plugin {driver} in v1 plugin registry: plugin not found")


def check_options(options: dict[str, str], driver: str = "bridge") -> dict[str, str]:
    """Raises InvalidRequest, UnsupportedField.  What is no option of Docker's has no effect there either."""
    known = _OPTIONS[driver]
    for name, value in options.items():
        if name not in known and (name.startswith(_OWN_OPTIONS) or name in _OF_SOME_DRIVER):
            raise UnsupportedField(
                f"Options.{name}", f"no option of the {driver} driver here", hint=f"known: {', '.join(known)}"
            )
        if name in (ICC_OPTION, MASQUERADE_OPTION) and not is_bool(value):
            raise InvalidRequest(f'Options.{name}: invalid value "{value}": must be true or false')
        if name == MTU_OPTION and not (
            value.isascii() and value.isdecimal() and _LEAST_MTU <= int(value[:6]) <= _MOST_MTU
        ):
            raise InvalidRequest(f'Options.{name}: invalid MTU "{value}": {_LEAST_MTU} to {_MOST_MTU}')
        if name == HOST_IP_OPTION:
            try:
                ipaddress.IPv4Address(value)
            except ValueError:
                raise InvalidRequest(f'Options.{name}: invalid IPv4 address "{value}"') from None
        if name == BRIDGE_OPTION and (not _LINK.fullmatch(value) or value in (".", "..")):
            raise InvalidRequest(f'Options.{name}: "{value}" is not a link name of 1 to 15 characters')
    if driver in ON_PARENT:
        check_parent_options(options, driver)
    return options


def check_parent_options(options: dict[str, str], driver: str) -> None:
    """Of macvlan and ipvlan.  Raises InvalidRequest, in moby's words."""
    for name, known, default in (
        (MACVLAN_MODE_OPTION, MACVLAN_MODES, "'bridge' mode is the macvlan driver default"),
        (IPVLAN_MODE_OPTION, IPVLAN_MODES, "'l2' mode is the ipvlan driver default"),
        (IPVLAN_FLAG_OPTION, IPVLAN_FLAGS, "'bridge' is the ipvlan driver default"),
    ):
        if (value := options.get(name, "")) and value not in known:
            raise InvalidRequest(
                f"requested {name.replace('_', ' ')} '{value}' is not valid, {default}",
                hint=f"known: {', '.join(known)}",
            )
    parent = options.get(PARENT_OPTION, "")
    if parent == "lo":
        raise InvalidRequest(f"loopback interface is not a valid {driver} parent link")
    if parent and (not _LINK.fullmatch(parent) or parent in (".", "..")):
        raise InvalidRequest(
            f'Options.{PARENT_OPTION}: "{parent[:64]}" is not a link name of 1 to 15 characters'
        )


def check_sharing(network: Network, existing: Collection[Network]) -> None:
    """Several networks on one parent.  Raises Conflict."""
    for other in existing:
        if not network.on_parent or other.parent != network.parent:
            continue
        if "passthru" in (network.mode, other.mode):
            raise Conflict(
                f"network {other.name} is already using parent interface {network.parent}",
                hint="in passthru mode a network is alone on its parent",
            )
        if network.driver == other.driver == "ipvlan" and (network.mode, network.flag) != (
            other.mode,
            other.flag,
        ):
            raise Conflict(
                f"network {other.name} is already using parent interface {network.parent} in mode "
                f"{other.mode} ({other.flag})",
                hint="the kernel has one mode and flag for all ipvlan links of a parent",
            )


def _choose_bridge(
    options: dict[str, str], network_id: str, existing: Collection[Network], links: Collection[str]
) -> str:
    name = options.get(BRIDGE_OPTION, "")
    if not name:
        return BRIDGE_PREFIX + network_id[:_ID_DIGITS]
    if holder := next((network for network in existing if network.bridge == name), None):
        raise Conflict(
            f"bridge {name} is in use by network {holder.name}: conflicts with network {holder.id}"
        )
    if name in links:
        raise Forbidden(
            f"the host already has a link {name}, which is not ours",
            hint=f"choose another name for {BRIDGE_OPTION}",
        )
    return name
